"""The prefill service on a real server, with a real KV-cache service and a fake engine."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from forebay.errors import (
    Code,
    ContextExceededError,
    DeadlineExceededError,
    DrainingError,
    DuplicateRequestError,
    EmptyPromptError,
    ForebayError,
    InvalidFieldError,
    KvExhaustedError,
    NumericFailureError,
    QueueFullError,
    RemoteError,
    TenantQuotaError,
    TokenOutOfRangeError,
    WorkerLostError,
)
from forebay.kv.hashing import block_hashes, root_hash
from forebay.kv.lease import Right
from forebay.prefill.servicer import PrefillServicer
from forebay.rpc.status import translated
from forebay.testing.attached_worker import LIMITS, MODEL, AttachedWorker, attached_worker, served
from forebay.testing.decode_rig import StepwiseEngine
from forebay.testing.fake_engine import POISON, next_token
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, prefill_pb2, prefill_pb2_grpc
from forebay.worker.block_supply import Patience

PROMPT = list(range(1, 23))  # 22 tokens: five full blocks of four, and two tokens


@dataclasses.dataclass
class Rig:
    kvcache: Any
    worker: AttachedWorker
    stub: Any

    async def prefill(self, **changes: Any) -> list[prefill_pb2.PrefillResponse]:
        with translated():
            return [one async for one in self.stub.Prefill(request(**changes))]


def request(**changes: Any) -> prefill_pb2.PrefillRequest:
    return prefill_pb2.PrefillRequest(**({"request_id": "r", "token_ids": PROMPT} | changes))


Start = Callable[..., Any]


@pytest.fixture
def start(start_kvcache: Start) -> Start:
    @asynccontextmanager
    async def _start(blocks: int = 64, tenant_blocks: int | None = None, **options: Any) -> AsyncIterator[Rig]:
        async with (
            start_kvcache(blocks=blocks, tenant_blocks=tenant_blocks) as kvcache,
            attached_worker(kvcache.address, **options) as worker,
        ):
            servicer = PrefillServicer(worker.runner, MODEL, kvcache.node_id, kvcache.address)
            register = prefill_pb2_grpc.add_PrefillServiceServicer_to_server
            async with served(register, servicer, "forebay.v1.PrefillService") as channel:
                yield Rig(kvcache, worker, prefill_pb2_grpc.PrefillServiceStub(channel))

    return _start


async def test_first_the_token_then_the_manifest(start: Start) -> None:
    async with start() as rig:
        sampling = common_pb2.SamplingParams(logprobs=1)
        first, last = await rig.prefill(tenant="t", cache_salt="c", sampling=sampling)
        assert first.first_token.token_id == next_token(PROMPT)
        assert first.first_token.logprobs.chosen.token_id == next_token(PROMPT)
        assert first.first_token.computed_tokens == len(PROMPT)
        assert first.first_token.cached_tokens == 0
        assert first.first_token.prefill_s > 0
        manifest = last.manifest
        assert manifest.sequence_id == "r"
        assert manifest.token_count == len(PROMPT)
        assert list(manifest.block_hashes) == block_hashes(root_hash(MODEL.digest, "t", "c"), PROMPT, 4)
        assert (manifest.node_id, manifest.kvcache_address) == (rig.kvcache.node_id, rig.kvcache.address)
        tier = rig.kvcache.stats().tiers[0]
        assert (tier.sealed, tier.leased) == (5, 1)
        rig.worker.rights.decline("r", manifest.epoch)
        await until(rig.kvcache.is_all_released)


async def test_blocks_are_sealed_as_they_fill_where_another_node_waits_for_them(start: Start) -> None:
    async with start(make_engine=StepwiseEngine) as rig:
        engine = rig.worker.engine
        assert isinstance(engine, StepwiseEngine)
        engine.is_stepwise = True
        engine.gate.clear()
        call = rig.stub.Prefill(request(seals_as_filled=True))
        assert (await call.read()).HasField("begun")
        assert rig.kvcache.node.right_to("r") is Right.OWNED
        engine.gate.set()  # the first of two steps
        await until(lambda: rig.kvcache.stats().tiers[0].sealed == LIMITS.chunk_tokens // LIMITS.block_tokens)
        engine.gate.set()
        assert (await call.read()).first_token.token_id == next_token(PROMPT)
        manifest = (await call.read()).manifest
        assert list(manifest.block_hashes) == block_hashes(root_hash(MODEL.digest, "", ""), PROMPT, 4)
        assert (rig.kvcache.stats().tiers[0].sealed, rig.kvcache.stats().tiers[0].leased) == (5, 1)
        assert rig.worker.link.lost_epochs == {}
        rig.worker.rights.decline("r", manifest.epoch)
        await until(rig.kvcache.is_all_released)


async def test_a_prefix_is_computed_once(start: Start) -> None:
    async with start() as rig:
        _, last = await rig.prefill()
        rig.worker.rights.decline("r", last.manifest.epoch)
        first, last = await rig.prefill(request_id="again")
        assert (first.first_token.cached_tokens, first.first_token.computed_tokens) == (20, 2)
        assert rig.worker.engine.computed_tokens["again"] == 2
        assert first.first_token.token_id == next_token(PROMPT)
        rig.worker.rights.decline("again", last.manifest.epoch)
        first, _ = await rig.prefill(request_id="other", tenant="other")
        assert first.first_token.cached_tokens == 0


@pytest.mark.parametrize(
    "sampling",
    [{"max_tokens": 1}, {"stop_token_ids": [next_token(PROMPT)]}],
)
async def test_a_first_token_that_ends_the_request_releases(start: Start, sampling: dict[str, Any]) -> None:
    async with start() as rig:
        (first,) = await rig.prefill(sampling=common_pb2.SamplingParams(**sampling))
        is_length = "max_tokens" in sampling
        expected = common_pb2.FINISH_REASON_LENGTH if is_length else common_pb2.FINISH_REASON_STOP
        assert first.first_token.finish_reason == expected
        await until(rig.kvcache.is_all_released)


@pytest.mark.parametrize(
    ("changes", "error", "field"),
    [
        ({"request_id": ""}, InvalidFieldError, "request_id"),
        ({"request_id": "x" * 129}, InvalidFieldError, "request_id"),
        ({"token_ids": []}, EmptyPromptError, "token_ids"),
        ({"token_ids": [1, 1000]}, TokenOutOfRangeError, "token_ids[1]"),
        ({"token_ids": [1] * 256}, ContextExceededError, "token_ids"),
        ({"sampling": common_pb2.SamplingParams(max_tokens=250)}, ContextExceededError, "sampling.max_tokens"),
        ({"sampling": common_pb2.SamplingParams(temperature=-1)}, InvalidFieldError, "sampling.temperature"),
        ({"qos_tier": 77}, InvalidFieldError, "qos_tier"),
    ],
)
async def test_bad_input_is_refused_by_name(
    start: Start, changes: dict[str, Any], error: type[ForebayError], field: str
) -> None:
    async with start() as rig:
        with pytest.raises(error) as caught:
            await rig.prefill(**changes)
        assert caught.value.field == field
        assert len(await rig.prefill(request_id="good", sampling=common_pb2.SamplingParams(max_tokens=1))) == 1


@pytest.mark.parametrize("seals_as_filled", [False, True])
async def test_a_prompt_whose_first_token_ends_it_stays_in_the_cache(start: Start, seals_as_filled: bool) -> None:
    async with start() as rig:
        one = {"sampling": common_pb2.SamplingParams(max_tokens=1), "seals_as_filled": seals_as_filled}
        assert (await rig.prefill(request_id="one", **one))[-1].first_token.cached_tokens == 0
        await until(rig.kvcache.is_all_released)
        assert (await rig.prefill(request_id="again", **one))[-1].first_token.cached_tokens == 20
        await until(rig.kvcache.is_all_released)


async def test_a_tenant_that_has_enough_is_refused_at_once_and_keeps_nobody_waiting(start: Start) -> None:
    async with start(tenant_blocks=10) as rig:
        rig.worker.engine.gate.clear()
        running = asyncio.create_task(rig.prefill(request_id="one", tenant="greedy"))
        await until(lambda: rig.kvcache.stats().sequences == 1)
        with pytest.raises(TenantQuotaError) as caught:
            await rig.prefill(request_id="two", tenant="greedy")
        assert caught.value.retry_after_s
        other = asyncio.create_task(rig.prefill(request_id="three", tenant="modest"))
        await until(lambda: rig.kvcache.stats().sequences == 2)
        rig.worker.engine.gate.set()
        await asyncio.gather(running, other)


async def test_a_sequence_of_nan_fails_alone(start: Start) -> None:
    async with start() as rig:
        bad, good = await asyncio.gather(
            rig.prefill(request_id="bad", token_ids=[1, POISON]),
            rig.prefill(request_id="good", sampling=common_pb2.SamplingParams(max_tokens=1)),
            return_exceptions=True,
        )
        assert isinstance(bad, NumericFailureError)
        assert isinstance(good, list)
        await until(rig.kvcache.is_all_released)


async def test_a_broken_step_is_internal_and_the_worker_lives(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.breaks = True
        with pytest.raises(ForebayError) as caught:
            await rig.prefill()
        assert caught.value.code is Code.INTERNAL
        assert caught.value.metadata == {"service": "forebay.v1.PrefillService"}
        assert "on purpose" not in caught.value.message
        rig.worker.engine.breaks = False
        await until(rig.kvcache.is_all_released)
        assert len(await rig.prefill(request_id="next")) == 2


async def test_the_same_id_twice_is_refused(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        running = asyncio.create_task(rig.prefill())
        await until(lambda: rig.kvcache.stats().sequences == 1)
        with pytest.raises(DuplicateRequestError):
            await rig.prefill()
        rig.worker.engine.gate.set()
        assert len(await running) == 2


async def test_a_draining_worker_takes_nothing_new(start: Start) -> None:
    async with start() as rig:
        rig.worker.runner.is_draining = True
        with pytest.raises(DrainingError) as caught:
            await rig.prefill()
        assert caught.value.retry_after_s is not None


async def test_a_prompt_larger_than_the_memory_is_refused_at_once(start: Start) -> None:
    async with start(blocks=4, patience=Patience(blocks_s=600)) as rig:
        with pytest.raises(KvExhaustedError):
            await rig.prefill()


async def test_a_prompt_waits_for_blocks_for_a_while(start: Start) -> None:
    async with start(blocks=8) as rig:
        _, last = await rig.prefill()
        with pytest.raises(KvExhaustedError) as caught:
            await rig.prefill(request_id="late", tenant="t")
        assert caught.value.retry_after_s is not None
        waiting = asyncio.create_task(rig.prefill(request_id="patient", tenant="t"))
        await until(lambda: rig.worker.runner.running_count == 1)
        rig.worker.rights.decline("r", last.manifest.epoch)
        assert len(await waiting) == 2


async def test_a_full_queue_is_said(start: Start) -> None:
    limits = dataclasses.replace(LIMITS, max_sequences=1)
    async with start(limits=limits, patience=Patience(queue_length=1)) as rig:
        rig.worker.engine.gate.clear()
        running = [asyncio.create_task(rig.prefill(request_id=name)) for name in "ab"]
        await until(lambda: rig.worker.runner.queued_count == 1)
        with pytest.raises(QueueFullError) as caught:
            await rig.prefill(request_id="c")
        assert caught.value.retry_after_s is not None
        rig.worker.engine.gate.set()
        assert [len(one) for one in await asyncio.gather(*running)] == [2, 2]


@pytest.mark.parametrize("phase", ["queued", "acquiring", "waiting_for_blocks", "computing", "handing_over"])
async def test_a_client_that_goes_away_leaves_nothing(start: Start, phase: str) -> None:
    limits = dataclasses.replace(LIMITS, max_sequences=1 if phase == "queued" else 8)
    async with start(blocks=8, limits=limits, patience=Patience(blocks_s=60)) as rig:
        gates = rig.kvcache.servicer
        other = None
        if phase in ("queued", "waiting_for_blocks"):
            rig.worker.engine.gate.clear()
            other = rig.stub.Prefill(request(request_id="other"))
            await until(lambda: rig.kvcache.stats().sequences == 1)
        if phase == "computing":
            rig.worker.engine.gate.clear()
        gate = {"acquiring": gates.acquire_gate, "handing_over": gates.seal_gate}.get(phase)
        if gate is not None:
            gate.clear()
        call = rig.stub.Prefill(request(tenant="t"))
        if phase == "handing_over":
            assert (await call.read()).HasField("first_token")
            await until(lambda: rig.kvcache.stats().tiers[0].sealed)
        await until(lambda: len(rig.worker.runner.sequences) == (1 if other is None else 2))
        call.cancel()
        if other is not None:
            await until(lambda: len(rig.worker.runner.sequences) == 1)
            other.cancel()
        rig.worker.engine.gate.set()
        if gate is not None:
            await until(lambda: not rig.worker.runner.sequences)
            gate.set()
        await until(rig.kvcache.is_all_released)
        await until(lambda: not rig.worker.runner.sequences)


async def test_a_passed_deadline_frees(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        with pytest.raises((DeadlineExceededError, RemoteError)) as caught, translated():
            async for _ in rig.stub.Prefill(request(), timeout=0.2):
                pass
        assert caught.value.code.name == "DEADLINE_EXCEEDED"
        rig.worker.engine.gate.set()
        await until(rig.kvcache.is_all_released)


async def test_many_prompts_at_once_all_come_out_right(start: Start) -> None:
    async with start(blocks=256) as rig:
        prompts = {f"p{number}": [number] * (number % 40 + 1) for number in range(40)}
        answers = await asyncio.gather(
            *(rig.prefill(request_id=name, token_ids=prompt) for name, prompt in prompts.items())
        )
        for (name, prompt), (first, last) in zip(prompts.items(), answers, strict=True):
            assert first.first_token.token_id == next_token(prompt)
            rig.worker.rights.decline(name, last.manifest.epoch)
        await until(rig.kvcache.is_all_released)


async def test_when_the_kv_service_dies_its_sequences_fail_clearly(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        running = asyncio.create_task(rig.prefill())
        await until(lambda: rig.kvcache.stats().sequences == 1)
        await rig.kvcache.server.stop(0)
        with pytest.raises(WorkerLostError):
            await running
        rig.worker.engine.gate.set()
        with pytest.raises(WorkerLostError):
            await rig.prefill(request_id="next")
