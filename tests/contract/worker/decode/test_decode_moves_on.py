"""A decode worker that drains hands its sequences over as they lie: another goes on and computes nothing again."""

from collections.abc import Callable
from typing import Any

import pytest

from forebay.decode.servicer import DecodeServicer
from forebay.testing.attached_worker import MODEL, attached_worker, served
from forebay.testing.decode_rig import PROMPT, Link, Rig, StepwiseEngine
from forebay.testing.fake_engine import continuation
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, decode_pb2_grpc
from forebay.worker.sequence_runner import SequenceRunner

Start = Callable[..., Any]
MOST_TOKENS = 60  # more than a fast engine generates before it hears of a drain
ANSWER = continuation(PROMPT, MOST_TOKENS)
SAMPLING = common_pb2.SamplingParams(max_tokens=MOST_TOKENS)


def stepwise(rig: Rig) -> StepwiseEngine:
    engine = rig.worker.engine
    assert isinstance(engine, StepwiseEngine)
    engine.is_stepwise = True
    return engine


async def step_until(engine: StepwiseEngine, condition: Callable[[], object]) -> None:
    while not condition():
        before = len(engine.batches)
        engine.gate.set()
        await until(lambda before=before: len(engine.batches) > before or condition())


def drain(runner: SequenceRunner) -> None:
    runner.is_draining = True
    runner.move_on()


async def generate_at(rig: Rig, runner: SequenceRunner, **fields: Any) -> Any:
    servicer = DecodeServicer(runner, MODEL, rig.kvcache.node_id)
    register = decode_pb2_grpc.add_DecodeServiceServicer_to_server
    async with served(register, servicer, "forebay.v1.DecodeService") as channel:
        link = Link(decode_pb2_grpc.DecodeServiceStub(channel).Decode())
        return await link.generate(**fields)


@pytest.mark.parametrize("generated", [1, 2, 3, 9, 11])  # from 22 prompt tokens: before, at and behind a block's end
async def test_another_goes_on_with_what_was_handed_over(start: Start, generated: int) -> None:
    async with start(make_engine=StepwiseEngine) as rig, attached_worker(rig.kvcache.address) as other:
        engine = stepwise(rig)
        await rig.link.start(sampling=SAMPLING)
        await step_until(
            engine, lambda: sum(len(one.new_token_ids) for one in rig.worker.runner.sequences) == generated
        )
        drain(rig.worker.runner)
        engine.is_stepwise = False
        engine.gate.set()
        moved = await rig.link.end_of()
        assert moved.last is not None
        assert (moved.last.error.reason, moved.last.kv_epoch > 0) == ("DRAINING", True)
        assert moved.tokens == ANSWER[: len(moved.tokens)]
        assert generated <= len(moved.tokens) <= generated + 1, "it ends with the step that was under way"
        await rig.worker.runner.wait_idle()
        told = await generate_at(
            rig,
            other.runner,
            emitted_token_ids=moved.tokens,
            left_behind_epoch=moved.last.kv_epoch,
            sampling=SAMPLING,
        )
        assert moved.tokens + told.tokens == ANSWER
        assert (told.last.summary.computed_prompt_tokens, told.last.summary.cached_tokens) == (0, len(PROMPT))
        assert rig.kvcache.stats().take_overs == 1
        await until(rig.kvcache.is_all_released)


async def test_a_prompt_is_computed_to_its_first_token_before_it_moves(start: Start) -> None:
    async with start(make_engine=StepwiseEngine) as rig:
        engine = stepwise(rig)
        await rig.link.start(sampling=SAMPLING)
        await until(lambda: rig.worker.runner.sequences)
        drain(rig.worker.runner)
        engine.is_stepwise = False
        engine.gate.set()
        moved = await rig.link.end_of()
        assert moved.last is not None
        assert moved.tokens == ANSWER[: len(moved.tokens)]
        assert moved.tokens
        assert moved.last.kv_epoch > 0
        await until(rig.kvcache.is_all_released)  # nobody takes it: the offer runs out


async def test_what_was_prefilled_for_a_draining_worker_moves_on_through_it(start: Start) -> None:
    async with start() as rig, attached_worker(rig.kvcache.address) as other:
        offer = await rig.offer(sampling=SAMPLING)
        drain(rig.worker.runner)
        moved = await rig.link.generate(**offer)
        assert moved.last is not None
        assert moved.last.error.reason == "DRAINING"
        emitted = [*offer["emitted_token_ids"], *moved.tokens]
        told = await generate_at(
            rig, other.runner, emitted_token_ids=emitted, left_behind_epoch=moved.last.kv_epoch, sampling=SAMPLING
        )
        assert emitted + told.tokens == ANSWER
        assert told.last.summary.computed_prompt_tokens == 0
        await until(rig.kvcache.is_all_released)


async def test_new_work_is_refused_without_an_epoch(start: Start) -> None:
    async with start() as rig:
        await rig.link.generate("before")
        drain(rig.worker.runner)
        refused = (await rig.link.generate()).last
        assert refused is not None
        assert (refused.error.reason, refused.kv_epoch) == ("DRAINING", 0)
        await until(rig.kvcache.is_all_released)


async def test_a_cancel_in_the_middle_of_it_leaves_nothing(start: Start) -> None:
    async with start(make_engine=StepwiseEngine) as rig:
        engine = stepwise(rig)
        await rig.link.start(sampling=SAMPLING)
        await step_until(engine, lambda: any(one.new_token_ids for one in rig.worker.runner.sequences))
        rig.kvcache.servicer.seal_gate.clear()
        drain(rig.worker.runner)
        engine.is_stepwise = False
        engine.gate.set()
        await until(lambda: not any(one.is_in_engine for one in rig.worker.runner.sequences))
        await rig.link.cancel()
        rig.kvcache.servicer.seal_gate.set()
        await rig.link.end_of()
        await until(rig.kvcache.is_all_released)
