"""BATCH gives its blocks up to REALTIME, and goes on later from what is kept of them."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from forebay.engine.types import SamplingParams
from forebay.kv.hashing import root_hash
from forebay.rpc.status import from_failure
from forebay.testing.attached_worker import MODEL, attached_worker
from forebay.testing.decode_rig import PROMPT, Rig, StepwiseEngine
from forebay.testing.fake_engine import LAYOUT, continuation
from forebay.testing.waiting import until
from forebay.v1 import common_pb2
from forebay.worker.block_supply import Patience
from forebay.worker.running_sequence import SequenceSpec

Start = Callable[..., Any]
BATCH = common_pb2.QOS_TIER_BATCH
LONG = common_pb2.SamplingParams(max_tokens=38)  # with the prompt 15 blocks
SHORT = common_pb2.SamplingParams(max_tokens=20)
BLOCK_TOKENS = LAYOUT.block_tokens
URGENT_PROMPT = list(range(100, 140))


def options(**more: Any) -> dict[str, Any]:
    return {"blocks": 16, "make_engine": StepwiseEngine} | more


async def batch_that_has_begun(rig: Rig, step_count: int = 20) -> StepwiseEngine:
    """It holds most of the node's blocks, and the engine stands still."""
    engine = rig.worker.engines[0]
    engine.is_stepwise = True
    await rig.link.start("batch", qos_tier=BATCH, sampling=LONG)
    await until(lambda: engine.gate.set() or engine.step_count >= step_count)
    return engine


def computed_again(engine: StepwiseEngine) -> int:
    """Tokens of the BATCH sequence whose KV was computed twice."""
    return engine.computed_tokens["batch"] - (len(PROMPT) + 37)


async def until_parked(rig: Rig) -> None:
    """The engine has yet to let go of it."""
    await until(lambda: any(one.is_parking for one in rig.worker.runner.sequences))


def go_on(engine: StepwiseEngine) -> None:
    engine.is_stepwise = False
    engine.gate.set()


async def test_batch_is_parked_for_realtime_and_computes_nothing_whole_again(start: Start) -> None:
    async with start(**options(host_blocks=16)) as rig:
        engine = await batch_that_has_begun(rig)
        await rig.link.start("urgent", prompt_token_ids=URGENT_PROMPT)
        await until_parked(rig)
        go_on(engine)
        assert (await rig.link.end_of("urgent")).tokens == continuation(URGENT_PROMPT, 10)
        batch = await rig.link.end_of("batch")
        assert batch.tokens == continuation(PROMPT, 38)
        assert list(rig.link.heard) == ["batch", "urgent"]
        assert batch.last.finish_reason == common_pb2.FINISH_REASON_LENGTH
        assert batch.last.summary.computed_prompt_tokens == len(PROMPT)
        assert 0 <= computed_again(engine) < BLOCK_TOKENS, "at most what a block was not full of"
        await until(rig.kvcache.is_all_released)


async def test_batch_is_parked_for_what_another_worker_of_the_node_needs(start: Start) -> None:
    async with start(**options(host_blocks=16)) as rig, attached_worker(rig.kvcache.address) as prefill:
        engine = await batch_that_has_begun(rig)
        root = root_hash(MODEL.digest, "", "")
        urgent = SequenceSpec("urgent", URGENT_PROMPT, SamplingParams(max_tokens=1, seed=0), root)

        async def compute() -> list[int]:
            async with prefill.runner.open(urgent, lambda token_id, logprobs: None) as running:
                await running.ended()
                return running.new_token_ids

        computing = asyncio.create_task(compute())
        await until_parked(rig)
        go_on(engine)
        assert await computing == continuation(URGENT_PROMPT, 1)
        assert (await rig.link.end_of("batch")).tokens == continuation(PROMPT, 38)
        await until(rig.kvcache.is_all_released)


async def test_without_a_host_tier_it_computes_again_and_says_the_same(start: Start) -> None:
    async with start(**options()) as rig:
        engine = await batch_that_has_begun(rig)
        await rig.link.start("urgent", prompt_token_ids=URGENT_PROMPT)
        await until_parked(rig)
        go_on(engine)
        assert (await rig.link.end_of("urgent")).tokens == continuation(URGENT_PROMPT, 10)
        assert (await rig.link.end_of("batch")).tokens == continuation(PROMPT, 38)
        assert computed_again(engine) >= BLOCK_TOKENS, "so that the test above shows what HOST is for"
        await until(rig.kvcache.is_all_released)


async def test_equals_park_nobody(start: Start) -> None:
    async with start(**options(patience=Patience(blocks_s=0.3))) as rig:
        engine = rig.worker.engines[0]
        engine.is_stepwise = True
        await rig.link.start("first", sampling=LONG)
        await until(lambda: engine.gate.set() or engine.step_count >= 20)
        await rig.link.start("second", prompt_token_ids=URGENT_PROMPT)
        failure = from_failure((await rig.link.end_of("second")).last.error)
        assert failure.reason == "KV_EXHAUSTED"
        go_on(engine)
        assert (await rig.link.end_of("first")).tokens == continuation(PROMPT, 38)
        assert engine.computed_tokens["first"] == len(PROMPT) + 37


async def test_a_parked_sequence_can_be_cancelled(start: Start) -> None:
    async with start(**options(host_blocks=16)) as rig:
        engine = await batch_that_has_begun(rig)
        await rig.link.start("urgent", prompt_token_ids=URGENT_PROMPT)
        await until(lambda: engine.gate.set() or "urgent" in rig.worker.link.owned_epochs)
        assert "batch" not in rig.worker.link.owned_epochs
        await rig.link.cancel("batch")
        go_on(engine)
        assert (await rig.link.end_of("batch")).last.finish_reason == common_pb2.FINISH_REASON_CANCELLED
        await rig.link.end_of("urgent")
        await until(rig.kvcache.is_all_released)
        await until(lambda: not rig.worker.runner.sequences)


async def test_a_new_epoch_is_told(start: Start) -> None:
    """So that another worker can take the sequence over if this one is lost after it was parked."""
    epochs: list[int] = []
    async with start(**options(host_blocks=16)) as rig:
        engine = await batch_that_has_begun(rig)
        epochs.append(rig.worker.link.owned_epochs["batch"])
        told = rig.link.epochs
        assert told["batch"] == epochs
        await rig.link.start("urgent", prompt_token_ids=URGENT_PROMPT)
        await until_parked(rig)
        go_on(engine)
        await rig.link.end_of("urgent")
        await rig.link.end_of("batch")
        assert len(told["batch"]) == 2
        assert told["batch"][1] > told["batch"][0]


@pytest.mark.parametrize("round_number", range(3))
async def test_many_of_both_tiers_all_end_as_they_should(start: Start, round_number: int) -> None:
    async with start(blocks=20, host_blocks=40, patience=Patience(blocks_s=60)) as rig:
        prompts = {
            f"{tier}-{number}": [number + 1, round_number + 1] * 9 for number in range(6) for tier in ("batch", "chat")
        }
        for name, prompt in prompts.items():
            tier = BATCH if name.startswith("batch") else common_pb2.QOS_TIER_REALTIME
            await rig.link.start(name, prompt_token_ids=prompt, qos_tier=tier, sampling=LONG, tenant=name)
            await asyncio.sleep(0)
        for name, prompt in prompts.items():
            heard = await rig.link.end_of(name)
            assert not heard.last.HasField("error"), heard.last.error
            assert heard.tokens == continuation(prompt, 38)
        await until(rig.kvcache.is_all_released)


async def test_what_another_worker_waits_for_is_not_taken_back_by_what_was_parked(start: Start) -> None:
    """It needs more than either BATCH sequence holds, so both must be out at once."""
    async with start(**options(blocks=20, host_blocks=40)) as rig, attached_worker(rig.kvcache.address) as prefill:
        engine = rig.worker.engines[0]
        engine.is_stepwise = True
        for name in ("batch-1", "batch-2"):
            prompt = [len(name), *PROMPT[:15], int(name[-1])]
            await rig.link.start(name, qos_tier=BATCH, sampling=SHORT, prompt_token_ids=prompt, tenant=name)
        await until(lambda: engine.gate.set() or engine.step_count >= 8)
        root = root_hash(MODEL.digest, "", "")
        urgent = SequenceSpec("urgent", list(range(100, 164)), SamplingParams(max_tokens=1, seed=0), root)

        async def compute() -> list[int]:
            async with prefill.runner.open(urgent, lambda token_id, logprobs: None) as running:
                await running.ended()
                return running.new_token_ids

        computing = asyncio.create_task(compute())
        await until(lambda: engine.gate.set() or computing.done(), timeout_s=4)
        assert await computing == continuation(list(range(100, 164)), 1)
        go_on(engine)
        for name in ("batch-1", "batch-2"):
            heard = await rig.link.end_of(name)
            assert heard.tokens == continuation([len(name), *PROMPT[:15], int(name[-1])], 20)
        await until(rig.kvcache.is_all_released)


async def test_a_parked_chat_waits_as_long_as_its_caller(start: Start) -> None:
    async with start(blocks=16, patience=Patience(blocks_s=0.1, stuck_s=0.05), make_engine=StepwiseEngine) as rig:
        engine = rig.worker.engines[0]
        engine.is_stepwise = True
        for name in ("old", "young"):
            await rig.link.start(
                name, prompt_token_ids=[3], tenant=name, sampling=common_pb2.SamplingParams(max_tokens=60)
            )
            await until(lambda name=name: name in rig.worker.link.owned_epochs)
        await until(lambda: engine.gate.set() or "young" not in rig.worker.link.owned_epochs)
        await asyncio.sleep(0.3)  # longer than a new sequence would wait
        go_on(engine)
        for name in ("old", "young"):
            assert (await rig.link.end_of(name)).tokens == continuation([3], 60)
        await until(rig.kvcache.is_all_released)
