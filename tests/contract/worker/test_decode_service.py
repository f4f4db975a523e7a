"""The decode service on a real server, with a real KV-cache service and a fake engine."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from forebay.decode.servicer import DecodeServicer
from forebay.engine.types import Sampled, SamplingParams, Slice
from forebay.errors import Code, DrainingError, InvalidFieldError
from forebay.fleet.member import Load
from forebay.kv.hashing import root_hash
from forebay.rpc.status import from_failure, translated
from forebay.telemetry import spans
from forebay.telemetry.tracing import use_provider
from forebay.testing.attached_worker import LIMITS, MODEL, AttachedWorker, attached_worker, served
from forebay.testing.fake_engine import POISON, FakeEngine, continuation
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, decode_pb2, decode_pb2_grpc
from forebay.wire.layout import layout_to_proto
from forebay.worker.attachment import Attachment
from forebay.worker.block_supply import Patience
from forebay.worker.running_sequence import SequenceSpec
from forebay.worker.service import load_of

PROMPT = list(range(1, 23))  # 22 tokens: five full blocks of four, and two tokens
Start = Callable[..., Any]


@dataclasses.dataclass
class Heard:
    """Everything heard of one sequence."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: int = 0
    messages: int = 0
    last: decode_pb2.SequenceOutput | None = None


class Link:
    """The router's end of a stream."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.heard: dict[str, Heard] = {}
        self.messages = 0
        self.task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        with translated():
            async for response in self.call:
                self.messages += 1
                assert len({one.request_id for one in response.outputs}) == len(response.outputs)
                for output in response.outputs:
                    heard = self.heard.setdefault(output.request_id, Heard())
                    assert heard.last is None or output.HasField("error")
                    heard.tokens += output.token_ids
                    heard.messages += 1
                    heard.logprobs += len(output.logprobs)
                    if output.finish_reason or output.HasField("error"):
                        heard.last = output

    async def start(self, request_id: str = "r", **changes: Any) -> None:
        fields = {"prompt_token_ids": PROMPT, "sampling": common_pb2.SamplingParams(max_tokens=10)} | changes
        start = decode_pb2.StartSequence(request_id=request_id, **fields)
        await self.call.write(decode_pb2.DecodeRequest(start=start))

    async def cancel(self, request_id: str = "r") -> None:
        await self.call.write(decode_pb2.DecodeRequest(cancel=decode_pb2.CancelSequence(request_id=request_id)))

    async def end_of(self, request_id: str = "r") -> Heard:
        await until(lambda: request_id in self.heard and self.heard[request_id].last is not None)
        return self.heard[request_id]

    async def generate(self, request_id: str = "r", **changes: Any) -> Heard:
        await self.start(request_id, **changes)
        return await self.end_of(request_id)


@dataclasses.dataclass
class Rig:
    kvcache: Any
    worker: AttachedWorker
    stub: Any
    link: Link

    async def offer(self, request_id: str = "r", prompt: list[int] = PROMPT, **changes: Any) -> dict[str, Any]:
        """What a prefill worker leaves: the fields of a StartSequence in SPLIT."""
        sampling = changes.get("sampling", common_pb2.SamplingParams(max_tokens=10))
        async with attached_worker(self.kvcache.address) as prefill:
            spec = SequenceSpec(
                sequence_id=request_id,
                prompt_token_ids=prompt,
                sampling=ONE_TOKEN,
                hash_root=root_hash(MODEL.digest, "", ""),
                is_handed_over=True,
            )
            async with prefill.runner.open(spec, lambda token_id, logprobs: None) as running:
                await running.ended()
                epoch, hashes = await prefill.runner.hand_over(running)
                prefill.runner.give_away(running)
                first = running.new_token_ids
        manifest = common_pb2.Manifest(
            sequence_id=request_id,
            node_id=self.kvcache.node_id,
            kvcache_address=self.kvcache.address,
            epoch=epoch,
            layout=layout_to_proto(MODEL.layout),
            token_count=len(prompt),
            block_hashes=hashes,
            model_digest=MODEL.digest,
        )
        return {
            "prompt_token_ids": prompt,
            "emitted_token_ids": first,
            "manifest": manifest,
            "sampling": sampling,
        } | changes


class StepwiseEngine(FakeEngine):
    """Once told so, makes one step each time its gate is opened."""

    is_stepwise = False

    def __init__(self, attachment: Attachment) -> None:
        super().__init__(attachment)
        self.batches: list[set[str]] = []

    def step(self, slices: list[Slice]) -> list[Sampled]:
        sampled = super().step(slices)
        self.batches.append({one.sequence.sequence_id for one in slices})
        if self.is_stepwise:
            self.gate.clear()
        return sampled


ONE_TOKEN = SamplingParams(max_tokens=1, seed=0)


@pytest.fixture
def start(start_kvcache: Start) -> Start:
    @asynccontextmanager
    async def _start(blocks: int = 64, lease_s: float = 60, **options: Any) -> AsyncIterator[Rig]:
        async with (
            start_kvcache(blocks=blocks, lease_s=lease_s) as kvcache,
            attached_worker(kvcache.address, **options) as worker,
        ):
            servicer = DecodeServicer(worker.runner, MODEL, kvcache.node_id)
            register = decode_pb2_grpc.add_DecodeServiceServicer_to_server
            async with served(register, servicer, "forebay.v1.DecodeService") as channel:
                stub = decode_pb2_grpc.DecodeServiceStub(channel)
                link = Link(stub.Decode())
                yield Rig(kvcache, worker, stub, link)
                link.call.cancel()
                await asyncio.gather(link.task, return_exceptions=True)

    return _start


async def test_local_computes_the_prompt_and_generates(start: Start) -> None:
    async with start() as rig:
        heard = await rig.link.generate(sampling=common_pb2.SamplingParams(max_tokens=10, logprobs=0))
        assert heard.tokens == continuation(PROMPT, 10)
        assert heard.logprobs == 10
        assert heard.last.finish_reason == common_pb2.FINISH_REASON_LENGTH
        summary = heard.last.summary
        assert (summary.cached_tokens, summary.computed_prompt_tokens) == (0, len(PROMPT))
        assert summary.decode_steps == 9  # the prompt's last chunk gave the first token
        assert summary.prefill_s > 0
        assert summary.decode_s > 0
        await until(rig.kvcache.is_all_released)
        # 31 tokens are computed: seven full blocks stay as cache, generated ones too.
        await until(lambda: rig.kvcache.stats().tiers[0].sealed == 7)


async def test_tokens_of_a_patient_request_come_in_two_messages_and_do_not_hold_up_others(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        await rig.link.start("patient", gather_ms=60_000, sampling=common_pb2.SamplingParams(max_tokens=50))
        await rig.link.start("other", sampling=common_pb2.SamplingParams(max_tokens=50))
        await until(lambda: len(rig.worker.link.owned_epochs) == 2)
        rig.worker.engine.gate.set()
        patient, other = await rig.link.end_of("patient"), await rig.link.end_of("other")
        assert patient.tokens == other.tokens == continuation(PROMPT, 50)
        assert patient.messages == 2  # the first token, and all others with the end
        await until(rig.kvcache.is_all_released)


async def test_what_is_urgent_of_one_sequence_leaves_the_tokens_of_others_waiting(start: Start) -> None:
    limits = dataclasses.replace(LIMITS, lookahead_blocks=16)  # nobody is ever stuck
    async with start(gather_s=60, limits=limits, make_engine=StepwiseEngine) as rig:
        engine, heard = rig.worker.engine, rig.link.heard
        engine.is_stepwise = True
        engine.gate.clear()
        await rig.link.start("long", sampling=common_pb2.SamplingParams(max_tokens=50))
        await rig.link.start("short", sampling=common_pb2.SamplingParams(max_tokens=5))
        await until(lambda: len(rig.worker.link.owned_epochs) == 2)
        while "short" not in heard or heard["short"].last is None:
            engine.gate.set()
            await asyncio.sleep(0.02)  # a step, and its news
        assert heard["short"].tokens == continuation(PROMPT, 5)
        assert heard["long"].tokens == continuation(PROMPT, 1), "its later tokens keep their own time"
        engine.is_stepwise = False
        engine.gate.set()
        long = await rig.link.end_of("long")
        assert (long.tokens, long.messages) == (continuation(PROMPT, 50), 2)


async def test_the_load_is_told_as_it_changes(start: Start) -> None:
    async with start() as rig:
        told: list[Load] = []
        rig.worker.runner.on_change(lambda: told.append(load_of(rig.worker.runner)))
        rig.worker.engine.gate.clear()
        await rig.link.start()
        await until(lambda: rig.worker.link.owned_epochs)
        assert told[-1] == Load(running_sequences=1, queued_tokens=len(PROMPT)), "before its first step has ended"
        rig.worker.engine.gate.set()
        await rig.link.end_of()
        await until(lambda: told[-1] == Load())


async def test_split_goes_on_where_prefill_stopped(start: Start) -> None:
    async with start() as rig:
        heard = await rig.link.generate(**await rig.offer())
        assert heard.tokens == continuation(PROMPT, 10)[1:]
        summary = heard.last.summary
        assert summary.computed_prompt_tokens == 0
        assert summary.cached_tokens == len(PROMPT)
        assert summary.transfer_bytes == 0
        assert rig.worker.engine.computed_tokens["r"] == 9
        assert rig.kvcache.stats().take_overs == 1
        await until(rig.kvcache.is_all_released)


async def test_resume_computes_only_what_is_not_held(start: Start) -> None:
    async with start() as rig:
        await rig.link.generate("first")
        heard = await rig.link.generate("second")
        assert heard.tokens == continuation(PROMPT, 10)
        assert (heard.last.summary.cached_tokens, heard.last.summary.computed_prompt_tokens) == (20, 2)


async def test_load_counts_what_is_held_and_what_is_still_to_compute(start: Start) -> None:
    async with start(make_engine=StepwiseEngine) as rig:
        engine, runner = rig.worker.engines[0], rig.worker.runner
        await rig.link.generate("first")
        await until(lambda: load_of(runner) == Load())
        engine.is_stepwise = True
        engine.gate.clear()
        await rig.link.start("second", prompt_token_ids=[*PROMPT, *range(20)])
        await until(lambda: load_of(runner).context_tokens)
        assert load_of(runner) == Load(running_sequences=1, queued_tokens=22, context_tokens=20)
        for computed_tokens, queued_tokens in ((36, 6), (42, 0), (43, 0)):  # 16 tokens a chunk
            engine.gate.set()
            await until(lambda computed_tokens=computed_tokens: load_of(runner).context_tokens >= computed_tokens)
            assert load_of(runner) == Load(1, 0, queued_tokens, computed_tokens)
        engine.is_stepwise = False
        engine.gate.set()
        await rig.link.end_of("second")


async def test_failover_goes_on_after_the_emitted_tokens(start: Start) -> None:
    async with start() as rig:
        emitted = continuation(PROMPT, 6)
        heard = await rig.link.generate(emitted_token_ids=emitted)
        assert emitted + heard.tokens == continuation(PROMPT, 10)
        assert heard.last.summary.computed_prompt_tokens == len(PROMPT)
        assert heard.last.summary.decode_steps == 3


@pytest.mark.parametrize(
    ("emitted", "sampling", "reason"),
    [
        (continuation(PROMPT, 2), {"max_tokens": 2}, common_pb2.FINISH_REASON_LENGTH),
        ([999], {"max_tokens": 5}, common_pb2.FINISH_REASON_STOP),
    ],
)
async def test_what_had_ended_already_ends_without_a_token(
    start: Start, emitted: list[int], sampling: dict[str, int], reason: int
) -> None:
    async with start() as rig:
        heard = await rig.link.generate(emitted_token_ids=emitted, sampling=common_pb2.SamplingParams(**sampling))
        assert heard.tokens == []
        assert heard.last.finish_reason == reason
        await until(rig.kvcache.is_all_released)


async def test_a_stop_token_ends_and_is_emitted(start: Start) -> None:
    async with start() as rig:
        tokens = continuation(PROMPT, 4)
        sampling = common_pb2.SamplingParams(max_tokens=50, stop_token_ids=[tokens[3]])
        heard = await rig.link.generate(sampling=sampling)
        assert heard.tokens == tokens
        assert heard.last.finish_reason == common_pb2.FINISH_REASON_STOP


async def test_generation_runs_to_the_end_of_the_context(start: Start) -> None:
    async with start(blocks=80) as rig:
        heard = await rig.link.generate(sampling=common_pb2.SamplingParams())
        assert heard.tokens == continuation(PROMPT, 256 - len(PROMPT))
        assert heard.last.finish_reason == common_pb2.FINISH_REASON_LENGTH


async def test_a_step_of_a_whole_batch_is_one_message(start: Start) -> None:
    async with start(blocks=256) as rig:
        rig.worker.engine.gate.clear()
        for number in range(8):
            await rig.link.start(f"s{number}", tenant=str(number), prompt_token_ids=[number + 1])
        await until(lambda: rig.worker.runner.running_count == 8)
        rig.worker.engine.gate.set()
        for number in range(8):
            assert (await rig.link.end_of(f"s{number}")).tokens == continuation([number + 1], 10)
        assert rig.link.messages <= rig.worker.engine.step_count
        await until(rig.kvcache.is_all_released)


MANIFEST_CASES = [
    ({"node_id": "elsewhere"}, "NOT_SERVED_YET", None),
    ({"model_digest": "other"}, "MODEL_MISMATCH", "manifest.model_digest"),
    ({"token_count": 0}, "INVALID_FIELD", "manifest.token_count"),
    ({"token_count": 23}, "INVALID_FIELD", "manifest.token_count"),
    ({"sequence_id": "other"}, "INVALID_FIELD", "manifest.sequence_id"),
    ({"epoch": 1}, "WORKER_LOST", None),
]


@pytest.mark.parametrize(("changes", "reason", "field"), MANIFEST_CASES)
async def test_a_manifest_that_is_not_for_this_worker_is_refused(
    start: Start, changes: dict[str, Any], reason: str, field: str | None
) -> None:
    async with start() as rig:
        offer = await rig.offer()
        epoch = offer["manifest"].epoch
        offer["manifest"].MergeFrom(common_pb2.Manifest(**changes))
        if changes.get("token_count") == 0:
            offer["manifest"].token_count = 0
        heard = await rig.link.generate(**offer)
        assert heard.last.error.reason == reason
        assert heard.last.error.metadata.get("field") == field
        if "epoch" in changes or "node_id" in changes:
            rig.worker.rights.decline("r", epoch)
        await until(rig.kvcache.is_all_released)


@pytest.mark.parametrize("is_given_up", [True, False])
async def test_a_sequence_that_is_still_written_is_waited_for_a_moment(start: Start, is_given_up: bool) -> None:
    patience = Patience(writer_s=20 if is_given_up else 0.3)
    async with start(patience=patience) as rig, attached_worker(rig.kvcache.address) as other:
        offer = await rig.offer()
        offer["manifest"].epoch = (await other.rights.take_over("r", offer["manifest"].epoch, 0)).epoch
        asked = len(rig.kvcache.servicer.acquires)
        await rig.link.start(**offer)
        if is_given_up:
            await until(lambda: len(rig.kvcache.servicer.acquires) >= asked + 3)
            other.rights.release("r")
        heard = await rig.link.end_of()
        if is_given_up:
            assert heard.tokens == continuation(PROMPT, 10)[1:]
        else:
            failure = from_failure(heard.last.error)
            assert (failure.reason, failure.retry_after_s) == ("WORKER_LOST", 1.0)
            other.rights.release("r")
        await until(rig.kvcache.is_all_released)


async def test_a_request_whose_id_is_still_written_is_told_to_come_again(start: Start) -> None:
    async with start(patience=Patience(writer_s=0.3)) as rig:
        async with attached_worker(rig.kvcache.address) as other:
            await other.rights.acquire("r", [], 2)
        await until(lambda: rig.kvcache.stats().attachments == 1)
        assert (await rig.link.generate()).last.error.reason == "WORKER_LOST"
        assert rig.kvcache.stats().sequences == 1, "this process lives, and has not said that it stopped"


async def test_an_offer_that_ran_out_is_made_good_from_the_cache(start: Start) -> None:
    async with start() as rig:
        offer = await rig.offer()
        rig.worker.rights.decline("r", offer["manifest"].epoch)
        await until(rig.kvcache.is_all_released)
        heard = await rig.link.generate(**offer)
        assert heard.tokens == continuation(PROMPT, 10)[1:]
        sealed_tokens = len(offer["manifest"].block_hashes) * rig.worker.runner.limits.block_tokens
        assert heard.last.summary.computed_prompt_tokens == len(PROMPT) - sealed_tokens < len(PROMPT)
        await until(rig.kvcache.is_all_released)


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"request_id": "x" * 200}, "INVALID_FIELD", "request_id"),
        ({"prompt_token_ids": []}, "EMPTY_PROMPT", "prompt_token_ids"),
        ({"prompt_token_ids": [5, 4000]}, "TOKEN_OUT_OF_RANGE", "prompt_token_ids[1]"),
        ({"emitted_token_ids": [1000]}, "TOKEN_OUT_OF_RANGE", "emitted_token_ids[0]"),
        ({"prompt_token_ids": [5] * 300}, "CONTEXT_EXCEEDED", "prompt_token_ids"),
        ({"sampling": common_pb2.SamplingParams(top_p=0)}, "INVALID_FIELD", "sampling.top_p"),
        ({"deadline_s": 0.0}, "INVALID_FIELD", "deadline_s"),
        ({"prompt_token_ids": [1, POISON]}, "NUMERIC_FAILURE", None),
    ],
)
async def test_a_bad_sequence_fails_alone(
    start: Start, changes: dict[str, Any], reason: str, field: str | None
) -> None:
    async with start() as rig:
        await rig.link.start("good")
        bad = await rig.link.generate(**{"request_id": "bad"} | changes)
        assert bad.last.error.reason == reason
        assert bad.last.error.metadata.get("field") == field
        assert (await rig.link.end_of("good")).tokens == continuation(PROMPT, 10)
        await until(rig.kvcache.is_all_released)


async def test_an_empty_command_ends_the_stream(start: Start) -> None:
    async with start() as rig:
        await rig.link.call.write(decode_pb2.DecodeRequest())
        with pytest.raises(InvalidFieldError):
            await rig.link.task


async def test_the_same_id_twice_is_refused_and_the_first_goes_on(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        await rig.link.start()
        await rig.link.start()
        heard = await rig.link.end_of()
        assert heard.last.error.reason == "DUPLICATE_REQUEST"
        other = Link(rig.stub.Decode())
        assert (await other.generate()).last.error.reason == "DUPLICATE_REQUEST"
        other.call.cancel()
        rig.worker.engine.gate.set()
        await until(rig.kvcache.is_all_released)


@pytest.mark.parametrize("phase", ["at_once", "queued", "acquiring", "computing", "offered", "decoding"])
@pytest.mark.parametrize("by", ["cancel", "stream"])
async def test_a_cancel_at_any_moment_frees_everything(start: Start, phase: str, by: str) -> None:
    limits = dataclasses.replace(LIMITS, max_sequences=1 if phase == "queued" else 8)
    async with start(blocks=128, limits=limits) as rig:
        fields: dict[str, Any] = {"sampling": common_pb2.SamplingParams(max_tokens=200)}
        if phase == "offered":
            fields = await rig.offer(**fields)
        if phase != "decoding":
            rig.worker.engine.gate.clear()
        if phase == "queued":
            await rig.link.start("other")
            await until(lambda: rig.worker.runner.running_count == 1)
        if phase == "acquiring":
            rig.kvcache.servicer.acquire_gate.clear()
        await rig.link.start(**fields)
        if phase not in ("at_once", "offered"):
            await until(lambda: len(rig.worker.runner.sequences) == (2 if phase == "queued" else 1))
        if phase == "decoding":
            await until(lambda: "r" in rig.link.heard)
        if by == "stream":
            rig.link.call.cancel()
        else:
            await rig.link.cancel()
            heard = await rig.link.end_of()
            assert heard.last.finish_reason == common_pb2.FINISH_REASON_CANCELLED
            emitted_before = 1 if phase == "offered" else 0
            assert heard.tokens == continuation(PROMPT, 200)[emitted_before:][: len(heard.tokens)]
        rig.kvcache.servicer.acquire_gate.set()
        rig.worker.engine.gate.set()
        await until(rig.kvcache.is_all_released)
        await until(lambda: not rig.worker.runner.sequences)


async def test_an_offer_cancelled_before_it_is_taken_is_released(start: Start) -> None:
    async with start() as rig:
        await rig.link.start(**await rig.offer())
        await rig.link.cancel()
        await rig.link.end_of()
        await until(rig.kvcache.is_all_released)


async def test_ending_the_commands_lets_sequences_finish(start: Start) -> None:
    async with start() as rig:
        await rig.link.start()
        await rig.link.call.done_writing()
        assert (await rig.link.end_of()).tokens == continuation(PROMPT, 10)
        await rig.link.task


async def test_a_passed_deadline_is_told(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        heard = await rig.link.generate(deadline_s=0.1)
        assert heard.last.error.reason == "DEADLINE_EXCEEDED"
        rig.worker.engine.gate.set()
        await until(rig.kvcache.is_all_released)


async def test_when_all_are_stuck_the_youngest_makes_room(start: Start) -> None:
    async with start(blocks=16, patience=Patience(stuck_s=0.3)) as rig:
        rig.worker.engine.gate.clear()
        for name in ("old", "young"):
            await rig.link.start(
                name, prompt_token_ids=[3], tenant=name, sampling=common_pb2.SamplingParams(max_tokens=60)
            )
            await until(lambda name=name: name in rig.worker.link.owned_epochs)
        rig.worker.engine.gate.set()
        assert (await rig.link.end_of("young")).last.error.reason == "KV_EXHAUSTED"
        assert (await rig.link.end_of("old")).tokens == continuation([3], 60)
        await until(rig.kvcache.is_all_released)


async def test_a_lost_sequence_stops_and_says_so(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        await rig.link.start()
        await until(lambda: rig.worker.link.owned_epochs)
        rig.worker.link.lose(["r"])
        heard = await rig.link.end_of()
        assert heard.last.error.reason == "WORKER_LOST"
        assert from_failure(heard.last.error).code is Code.UNAVAILABLE
        rig.worker.engine.gate.set()
        await until(lambda: not rig.worker.runner.sequences)
        assert heard.tokens == []


async def test_a_worker_attaches_again_and_serves(start_kvcache: Start, start: Start) -> None:
    async with start() as rig:
        await rig.link.generate("before")
        old_engine = rig.worker.engine
        await rig.kvcache.server.stop(0)
        async with start_kvcache(listen=rig.kvcache.address) as again:
            await until(lambda: rig.worker.engine is not old_engine)
            assert (await rig.link.generate("after")).tokens == continuation(PROMPT, 10)
            await until(again.is_all_released)


async def test_what_a_broken_attachment_lost_is_released_after_the_next(start: Start) -> None:
    async with start() as rig:
        rig.worker.engine.gate.clear()
        await rig.link.start()
        await until(lambda: rig.worker.link.owned_epochs)
        engine = rig.worker.engine
        rig.kvcache.node.end_attachments()
        assert (await rig.link.end_of()).last.error.reason == "WORKER_LOST"
        await until(lambda: rig.worker.engine is not engine)
        assert rig.kvcache.stats().sequences == 1  # the old step may still write
        engine.gate.set()
        await until(rig.kvcache.is_all_released)
        assert (await rig.link.generate("next")).tokens == continuation(PROMPT, 10)


async def test_what_a_step_may_still_write_is_named_however_long_that_takes(start: Start) -> None:
    async with start(lease_s=0.4) as rig:
        rig.worker.engine.gate.clear()
        await rig.link.start()
        await until(lambda: rig.worker.link.owned_epochs)
        engine, heartbeats = rig.worker.engine, rig.kvcache.servicer.heartbeats
        rig.kvcache.node.end_attachments()
        assert (await rig.link.end_of()).last.error.reason == "WORKER_LOST"
        await until(lambda: rig.worker.engine is not engine)
        heard = len(heartbeats)
        await until(lambda: len(heartbeats) > heard + 8)  # two leases
        assert rig.kvcache.stats().sequences == 1
        engine.gate.set()
        await until(rig.kvcache.is_all_released)


async def test_batch_waits_behind_realtime(start: Start) -> None:
    realtime, batch = common_pb2.QOS_TIER_REALTIME, common_pb2.QOS_TIER_BATCH
    tiers = {"holder": realtime, "batch": batch, "realtime": realtime, "unsaid": common_pb2.QOS_TIER_UNSPECIFIED}
    async with start(limits=dataclasses.replace(LIMITS, max_sequences=1)) as rig:
        rig.worker.engine.gate.clear()
        for waiting, (request_id, qos_tier) in enumerate(tiers.items()):
            await rig.link.start(request_id, qos_tier=qos_tier)
            await until(lambda waiting=waiting: rig.worker.runner.queued_count == waiting)
            await until(lambda: rig.worker.runner.running_count == 1)
        rig.worker.engine.gate.set()
        for request_id in tiers:
            await rig.link.end_of(request_id)
        assert list(rig.link.heard) == ["holder", "realtime", "unsaid", "batch"]


async def test_realtime_pauses_batch_which_goes_on_where_it_was(start: Start) -> None:
    batch, limits = common_pb2.QOS_TIER_BATCH, dataclasses.replace(LIMITS, max_sequences=1)
    async with start(limits=limits, make_engine=StepwiseEngine) as rig:
        engine, runner = rig.worker.engines[0], rig.worker.runner
        engine.is_stepwise = True
        await rig.link.start("batch", qos_tier=batch, sampling=common_pb2.SamplingParams(max_tokens=60))
        await until(lambda: engine.gate.set() or "batch" in rig.link.heard)
        await rig.link.start("urgent", tenant="other")
        await until(lambda: len(runner.sequences) == 2 and all(one.is_in_engine for one in runner.sequences))
        assert (runner.running_count, runner.queued_count) == (1, 1)
        engine.is_stepwise = False
        engine.gate.set()
        assert (await rig.link.end_of("urgent")).tokens == continuation(PROMPT, 10)
        assert (await rig.link.end_of("batch")).tokens == continuation(PROMPT, 60)
        assert [names for names, _ in groupby(engine.batches)] == [{"batch"}, {"urgent"}, {"batch"}]
        assert engine.computed_tokens["batch"] == len(PROMPT) + 59, "nothing is computed twice"
        await until(rig.kvcache.is_all_released)


async def test_what_blocks_become_free_goes_to_the_urgent_and_the_last_makes_room(start: Start) -> None:
    """Each of four needs all blocks of the node in the end."""
    tiers = {"first": 2, "second": 2, "urgent": 1, "late": 1}
    async with start(blocks=16, patience=Patience(blocks_s=60, stuck_s=0.1)) as rig:
        for name, qos_tier in tiers.items():
            await rig.link.start(
                name,
                prompt_token_ids=[3],
                tenant=name,
                sampling=common_pb2.SamplingParams(max_tokens=60),
                qos_tier=qos_tier,
            )
            await until(lambda name=name: any(one.sequence_id == name for one in rig.worker.runner.sequences))
        heard = {name: await rig.link.end_of(name) for name in tiers}
        assert heard["urgent"].tokens == continuation([3], 60)
        for name in ("first", "second", "late"):
            if heard[name].last.HasField("error"):
                failure = from_failure(heard[name].last.error)
                assert (failure.reason, failure.retry_after_s) == ("KV_EXHAUSTED", 1.0)
            else:
                assert heard[name].tokens == continuation([3], 60)
        await until(rig.kvcache.is_all_released)


async def test_a_draining_worker_refuses_streams_and_sequences(start: Start) -> None:
    async with start() as rig:
        await rig.link.generate("before")
        rig.worker.runner.is_draining = True
        assert (await rig.link.generate("after")).last.error.reason == "DRAINING"
        with pytest.raises(DrainingError):
            await Link(rig.stub.Decode()).task


async def test_a_crowd_with_cancels_leaves_nothing(start: Start) -> None:
    async with start(blocks=200, patience=Patience(blocks_s=30, stuck_s=10)) as rig:
        prompts = {f"c{number}": [number % 7 + 1] * (number % 30 + 1) for number in range(90)}
        for number, (name, prompt) in enumerate(prompts.items()):
            await rig.link.start(name, prompt_token_ids=prompt)
            if number % 3 == 0:
                await rig.link.cancel(name)
        for number, (name, prompt) in enumerate(prompts.items()):
            heard = await rig.link.end_of(name)
            if number % 3:
                assert heard.tokens == continuation(prompt, 10)
            else:
                assert heard.tokens == continuation(prompt, len(heard.tokens))
        await until(rig.kvcache.is_all_released)
        assert rig.worker.runner.running_count == 0
        assert rig.worker.runner.queued_count == 0


async def test_each_sequence_is_one_span_under_its_request(start: Start) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    use_provider(provider)
    try:
        async with start() as rig:
            trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
            await rig.link.generate("good", traceparent=f"00-{trace_id}-{parent_id}-01")
            await rig.link.generate("bad", prompt_token_ids=[1, POISON], traceparent=f"00-{trace_id}-{parent_id}-01")
    finally:
        use_provider(None)
    found = {one.attributes[spans.REQUEST_ID]: one for one in exporter.get_finished_spans() if one.name == spans.DECODE}
    assert set(found) == {"good", "bad"}
    for span in found.values():
        assert f"{span.context.trace_id:032x}" == trace_id
        assert f"{span.parent.span_id:016x}" == parent_id
    assert found["good"].attributes[spans.OUTPUT_TOKENS] == 10
    assert found["good"].attributes[spans.COMPUTED_TOKENS] == len(PROMPT)
    assert found["good"].attributes[spans.DECODE_STEPS] == 9
    assert found["bad"].attributes[spans.ERROR_TYPE] == "NUMERIC_FAILURE"
