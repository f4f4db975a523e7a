"""What a decode worker computes, finds and takes over, and how a generation ends."""

from collections.abc import Callable
from typing import Any

import pytest

from forebay.fleet.member import Load
from forebay.testing.decode_rig import PROMPT, StepwiseEngine
from forebay.testing.fake_engine import continuation
from forebay.testing.waiting import until
from forebay.v1 import common_pb2
from forebay.worker.service import load_of

Start = Callable[..., Any]


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
        assert load_of(runner) == Load(
            running_sequences=1, queued_tokens=22, context_tokens=20, queued_realtime_tokens=22
        )
        for computed_tokens, queued_tokens in ((36, 6), (42, 0), (43, 0)):  # 16 tokens a chunk
            engine.gate.set()
            await until(lambda computed_tokens=computed_tokens: load_of(runner).context_tokens >= computed_tokens)
            assert load_of(runner) == Load(1, 0, queued_tokens, computed_tokens, queued_realtime_tokens=queued_tokens)
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
