"""The engine's thread: commands in, one report per step out, and what happens when a step breaks."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from forebay.engine.scheduler import Failed, Finished, FinishReason, Limits, NewToken, Scheduler
from forebay.engine.step_cost import StepSize
from forebay.engine.step_totals import StepTotals
from forebay.engine.types import Sampled, SamplingParams, Sequence, Slice
from forebay.errors import NumericFailureError, WorkerLostError
from forebay.testing.fake_engine import MODEL_COST, FixedCores
from forebay.testing.waiting import until
from forebay.worker.core_division import StepWork
from forebay.worker.engine_thread import Add, Cancel, DropEngine, EngineThread, MoreBlocks, UseEngine
from forebay.worker.step_meter import Phase, StepMeter
from forebay.worker.step_report import Report, Share


@dataclass
class CountingEngine:
    """Says 1, 2, 3 …; `gate` holds a step back."""

    gate: threading.Event = field(default_factory=threading.Event)
    threads: set[int] = field(default_factory=set)
    cores: list[int] = field(default_factory=list)
    steps: int = 0
    is_broken: bool = False
    poisoned: frozenset[str] = frozenset()
    now_s: float = 0.0
    """A step takes 10 ms, and 1 ms for each token of a prompt."""

    def use_threads(self, threads: int) -> None:
        self.cores.append(threads)

    def step(self, slices: list[Slice]) -> list[Sampled]:
        self.threads.add(threading.get_ident())
        self.steps += 1
        self.gate.wait()
        if self.is_broken:
            raise RuntimeError("secret")
        prompt_tokens = sum(one.token_count for one in slices if not one.sequence.is_decoding)
        self.now_s += 0.01 + 0.001 * prompt_tokens
        return [
            Sampled(one.sequence.sequence_id, None, error=NumericFailureError("NaN"))
            if one.sequence.sequence_id in self.poisoned
            else Sampled(one.sequence.sequence_id, len(one.sequence.output_token_ids) + 1)
            for one in slices
            if one.token_count == one.sequence.pending_tokens
        ]


@dataclass
class Rig:
    thread: EngineThread
    engine: CountingEngine
    reports: list[Report]
    cores: FixedCores
    broken: asyncio.Event

    def outcomes(self, kind: type) -> list[object]:
        return [one for report in self.reports for one in report.outcomes if isinstance(one, kind)]


LIMITS = Limits(block_tokens=4, context_tokens=100)


@asynccontextmanager
async def started(may_write: Callable[[], bool] = lambda: True, limits: Limits = LIMITS) -> AsyncIterator[Rig]:
    engine, reports, broken = CountingEngine(), [], asyncio.Event()
    engine.gate.set()
    cores = FixedCores(3)
    thread = EngineThread(engine, Scheduler(limits), may_write, cores, clock=lambda: engine.now_s)
    thread.start(reports.append, on_broken=broken.set)
    try:
        yield Rig(thread, engine, reports, cores, broken)
    finally:
        engine.gate.set()
        await thread.stop()


def sequence(sequence_id: str = "a", blocks: int = 10, max_tokens: int = 3, prompt: int = 6) -> Sequence:
    return Sequence(sequence_id, [5] * prompt, SamplingParams(max_tokens=max_tokens, seed=0), list(range(blocks)))


async def test_each_step_has_its_share_of_cores_and_gives_them_back() -> None:
    async with started() as rig:
        rig.engine.gate.clear()
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.engine.steps)
        assert rig.cores.is_busy
        rig.engine.gate.set()
        await until(lambda: rig.outcomes(Finished))
        await until(lambda: not rig.cores.is_busy)
        assert rig.engine.cores == [3] * rig.engine.steps


async def test_the_node_is_told_what_each_step_computes() -> None:
    async with started() as rig:
        rig.thread.submit(Add(sequence(), 1))
        await until(lambda: rig.outcomes(Finished))
        assert rig.cores.works == [StepWork(1), StepWork(1, 0.05), StepWork(1, 0.05)]


async def test_a_prompt_is_computed_in_chunks_that_keep_the_steps_of_others_within_their_slo() -> None:
    limits = Limits(block_tokens=4, context_tokens=10_000, chunk_tokens=100, step_slo_s=0.0505)
    async with started(limits=limits) as rig:
        rig.engine.gate.clear()
        rig.thread.submit(Add(sequence("generating", blocks=2000, max_tokens=5000), 0))
        await until(lambda: rig.engine.steps == 1)
        rig.thread.submit(Add(sequence("prompt", blocks=2000, prompt=4000, max_tokens=1), 0))
        rig.engine.gate.set()
        await until(lambda: Finished("prompt", FinishReason.LENGTH) in rig.outcomes(Finished))
        chunks = [one.token_count for report in rig.reports for one in report.shares if one.sequence_id == "prompt"]
        assert chunks[0] == 18, "its own prompt of 6 tokens took 2.7 ms a token"
        assert max(chunks) <= 40, "what 10 of 50 ms leave"
        assert chunks[-2] >= 38
        assert all(any(one.sequence_id == "generating" for one in report.shares) for report in rig.reports)


async def test_chunks_are_whole_alone_and_short_while_another_worker_generates() -> None:
    limits = Limits(block_tokens=4, context_tokens=10_000, chunk_tokens=100)
    async with started(limits=limits) as rig:
        rig.thread.submit(Add(sequence("alone", blocks=500, prompt=1000, max_tokens=1), 0))
        await until(lambda: len(rig.outcomes(Finished)) == 1)
        rig.cores.others_step_slo_s = 0.0225
        rig.thread.submit(Add(sequence("beside", blocks=500, prompt=100, max_tokens=1), 0))
        await until(lambda: len(rig.outcomes(Finished)) == 2)
        chunks = {name: [] for name in ("alone", "beside")}
        for share in (share for report in rig.reports for share in report.shares):
            chunks[share.sequence_id].append(share.token_count)
        assert chunks["alone"] == [100] * 10
        assert chunks["beside"][0] == 20, "a chunk of 100 took 1.1 ms a token"
        assert max(chunks["beside"]) == 20


async def test_reports_carry_what_their_step_cost_and_took() -> None:
    async with started() as rig:
        meter = StepMeter(MODEL_COST)
        rig.thread.measure_with(meter)
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.outcomes(Finished))
        steps = [report.measured for report in rig.reports if report.shares]
        assert [one.busy_s for one in steps] == pytest.approx([0.016, 0.01, 0.01])
        assert steps[1].cost == MODEL_COST.of(StepSize(1, 1, 7, 7)), "its position is not that of after the step"
        assert meter.totals(Phase.PREFILL) == StepTotals().plus(steps[0])
        assert meter.totals(Phase.DECODE) == StepTotals().plus(steps[1]).plus(steps[2])
        rig.engine.is_broken = True
        rig.thread.submit(Add(sequence("b"), 0))
        await until(lambda: rig.outcomes(Failed))
        assert rig.reports[-1].measured is None


async def test_a_sequence_with_bad_logits_fails_alone_and_the_thread_lives() -> None:
    async with started() as rig:
        rig.engine.poisoned = frozenset({"bad"})
        rig.engine.gate.clear()
        for name in ("bad", "good"):
            rig.thread.submit(Add(sequence(name), 0))
        rig.engine.gate.set()
        await until(lambda: rig.outcomes(Finished))
        (failed,) = rig.outcomes(Failed)
        assert (failed.sequence_id, failed.error.reason) == ("bad", "NUMERIC_FAILURE")
        assert [one.token_id for one in rig.outcomes(NewToken) if one.sequence_id == "good"] == [1, 2, 3]
        rig.thread.submit(Add(sequence("bad"), 0))
        rig.thread.submit(Add(sequence("later"), 0))
        await until(lambda: len(rig.outcomes(Finished)) == 2)
        assert len(rig.outcomes(Failed)) == 2


async def test_each_step_is_one_report_and_the_loop_never_calls_the_engine() -> None:
    async with started() as rig:
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.outcomes(Finished))
        assert [one.token_id for one in rig.outcomes(NewToken)] == [1, 2, 3]
        shares = [share for report in rig.reports for share in report.shares]
        assert shares == [Share("a", 0, 6), Share("a", 6, 1), Share("a", 7, 1)]
        assert threading.get_ident() not in rig.engine.threads


async def test_an_idle_thread_takes_no_steps_and_wakes_for_a_command() -> None:
    async with started() as rig:
        rig.thread.submit(Add(sequence(blocks=1), 0))
        await until(lambda: rig.reports and rig.reports[-1].stuck)
        assert rig.reports[-1].stuck == {"a"}
        steps, reports = rig.engine.steps, len(rig.reports)
        rig.thread.submit(MoreBlocks("unknown", (1,)))
        rig.thread.submit(Cancel("unknown"))
        await until(lambda: len(rig.reports) > reports)
        assert rig.engine.steps == steps
        rig.thread.submit(MoreBlocks("a", (1, 2)))
        await until(lambda: rig.outcomes(Finished))


async def test_a_cancel_is_answered_only_after_the_step_under_way() -> None:
    async with started() as rig:
        rig.engine.gate.clear()
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.engine.steps == 1)
        rig.thread.submit(Cancel("a"))
        await asyncio.sleep(0)
        assert not any(report.removed for report in rig.reports)
        rig.engine.gate.set()
        await until(lambda: any(report.removed for report in rig.reports))
        assert rig.engine.steps == 1


async def test_a_broken_step_fails_its_sequences_without_its_text_and_the_thread_lives() -> None:
    async with started() as rig:
        rig.engine.is_broken = True
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.outcomes(Failed))
        (failed,) = rig.outcomes(Failed)
        assert failed.error.reason == "INTERNAL"
        assert "secret" not in failed.error.message
        rig.engine.is_broken = False
        rig.thread.submit(Add(sequence("b"), 0))
        await until(lambda: rig.outcomes(Finished))


async def test_without_the_right_to_write_nothing_is_computed() -> None:
    async with started(may_write=lambda: False) as rig:
        rig.thread.submit(Add(sequence(), 0))
        rig.thread.submit(Add(sequence("b"), 0))
        await until(lambda: len(rig.outcomes(Failed)) == 2)
        assert {type(one.error) for one in rig.outcomes(Failed)} == {WorkerLostError}
        assert rig.engine.steps == 0


@pytest.mark.parametrize("max_tokens", [1, 3])
async def test_nothing_is_told_of_a_step_that_outlived_the_right_to_write(max_tokens: int) -> None:
    has_right = True
    async with started(may_write=lambda: has_right) as rig:
        rig.engine.gate.clear()
        rig.thread.submit(Add(sequence(max_tokens=max_tokens), 0))
        await until(lambda: rig.engine.steps == 1)
        has_right = False
        rig.engine.gate.set()
        await until(lambda: rig.reports)
        (report,) = rig.reports
        assert [(type(one), type(one.error)) for one in report.outcomes] == [(Failed, WorkerLostError)]


async def test_a_sequence_that_cannot_be_added_fails() -> None:
    async with started() as rig:
        rig.engine.gate.clear()
        rig.thread.submit(Add(sequence(), 0))
        rig.thread.submit(Add(sequence(), 0))
        rig.engine.gate.set()
        await until(lambda: rig.outcomes(Failed))
        assert rig.outcomes(Failed)[0].error.reason == "DUPLICATE_REQUEST"


async def test_a_sequence_that_breaks_the_scheduler_fails_alone_and_the_thread_lives(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with started() as rig:
        nothing_left = Sequence("nothing left", [5, 5], SamplingParams(max_tokens=2, seed=0), [0], computed_tokens=2)
        rig.engine.gate.clear()
        for one in (sequence("a"), nothing_left):
            rig.thread.submit(Add(one, 0))
        rig.thread.submit(MoreBlocks("a", None))
        rig.thread.submit(Add(sequence("b"), 0))
        rig.engine.gate.set()
        await until(lambda: rig.outcomes(Finished))
        assert {one.sequence_id: one.error.reason for one in rig.outcomes(Failed)} == dict.fromkeys(
            ("a", "nothing left"), "INTERNAL"
        )
        assert [one.sequence_id for one in rig.outcomes(Finished)] == ["b"]
        assert caplog.text.count("broke the scheduler") == 2
        assert not rig.broken.is_set()


async def test_a_thread_that_cannot_go_on_tells_what_it_has_and_that_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    async with started() as rig:
        rig.thread.submit(Add(sequence(blocks=1), 0))
        await until(lambda: rig.reports and rig.reports[-1].stuck)
        rig.cores.is_broken = True
        rig.thread.submit(MoreBlocks("a", (1, 2)))
        await until(rig.broken.is_set)
        assert "the engine's thread cannot go on" in caplog.text
        assert rig.engine.steps == 1


async def test_a_thread_that_is_stopped_is_not_broken() -> None:
    async with started() as rig:
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.outcomes(Finished))
        await rig.thread.stop()
        await asyncio.sleep(0)
        assert not rig.broken.is_set()


async def test_another_engine_takes_the_next_step() -> None:
    async with started() as rig:
        other = CountingEngine()
        other.gate.set()
        rig.thread.submit(UseEngine(other))
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.outcomes(Finished))
        assert (rig.engine.steps, other.steps) == (0, 3)


async def test_without_an_engine_sequences_fail_until_there_is_another() -> None:
    async with started() as rig:
        rig.thread.submit(DropEngine())
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.outcomes(Failed))
        assert isinstance(rig.outcomes(Failed)[0].error, WorkerLostError)
        other = CountingEngine()
        other.gate.set()
        rig.thread.submit(UseEngine(other))
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.outcomes(Finished))
        assert (rig.engine.steps, other.steps) == (0, 3)


async def test_which_step_is_under_way_is_known_outside() -> None:
    async with started() as rig:
        rig.engine.gate.clear()
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.thread.step_under_way == 1)
        rig.engine.gate.set()
        await until(lambda: rig.thread.step_under_way is None and rig.engine.steps > 1)
        rig.engine.gate.clear()
        rig.thread.submit(Add(sequence("b"), 0))
        await until(lambda: rig.thread.step_under_way == rig.engine.steps)
