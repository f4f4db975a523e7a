"""The engine's thread: commands in, one report per step out, and what happens when a step breaks."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from forebay.engine.scheduler import Failed, Finished, Limits, NewToken, Scheduler
from forebay.engine.types import Sampled, SamplingParams, Sequence, Slice
from forebay.errors import WorkerLostError
from forebay.testing.fake_engine import FixedCores
from forebay.testing.waiting import until
from forebay.worker.engine_thread import Add, Cancel, EngineThread, MoreBlocks, Report, Share, UseEngine


@dataclass
class CountingEngine:
    """Says 1, 2, 3 …; `gate` holds a step back."""

    gate: threading.Event = field(default_factory=threading.Event)
    threads: set[int] = field(default_factory=set)
    cores: list[int] = field(default_factory=list)
    steps: int = 0
    is_broken: bool = False

    def use_threads(self, threads: int) -> None:
        self.cores.append(threads)

    def step(self, slices: list[Slice]) -> list[Sampled]:
        self.threads.add(threading.get_ident())
        self.steps += 1
        self.gate.wait()
        if self.is_broken:
            raise RuntimeError("secret")
        return [
            Sampled(one.sequence.sequence_id, len(one.sequence.output_token_ids) + 1)
            for one in slices
            if one.sequence.computed_tokens + one.token_count == one.sequence.token_count
        ]


@dataclass
class Rig:
    thread: EngineThread
    engine: CountingEngine
    reports: list[Report]
    cores: FixedCores

    def outcomes(self, kind: type) -> list[object]:
        return [one for report in self.reports for one in report.outcomes if isinstance(one, kind)]


@asynccontextmanager
async def started(may_write: Callable[[], bool] = lambda: True) -> AsyncIterator[Rig]:
    engine, reports = CountingEngine(), []
    engine.gate.set()
    cores = FixedCores(3)
    thread = EngineThread(engine, Scheduler(Limits(block_tokens=4, context_tokens=100)), may_write, cores)
    thread.start(reports.append)
    try:
        yield Rig(thread, engine, reports, cores)
    finally:
        engine.gate.set()
        await thread.stop()


def sequence(sequence_id: str = "a", blocks: int = 10, max_tokens: int = 3) -> Sequence:
    return Sequence(sequence_id, [5] * 6, SamplingParams(max_tokens=max_tokens, seed=0), list(range(blocks)))


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


async def test_another_engine_takes_the_next_step() -> None:
    async with started() as rig:
        other = CountingEngine()
        other.gate.set()
        rig.thread.submit(UseEngine(other))
        rig.thread.submit(Add(sequence(), 0))
        await until(lambda: rig.outcomes(Finished))
        assert (rig.engine.steps, other.steps) == (0, 3)
