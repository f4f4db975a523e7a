"""The one thread that calls the engine. The event loop gives it commands and gets reports of its steps.

Knows the scheduler and the engine; knows nothing of gRPC, requests or KV rights but the question "may I write now?".
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from forebay.engine.chunk_budget import ChunkBudget
from forebay.engine.scheduler import Failed, Outcome, Scheduler
from forebay.engine.step_totals import MeasuredStep
from forebay.engine.types import Engine, Sequence, Slice
from forebay.errors import RETRY_AFTER_S, ForebayError, WorkerLostError
from forebay.worker.core_division import StepWork
from forebay.worker.step_meter import StepMeter
from forebay.worker.step_report import Report, ReportGathering, Share, Telling

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Add:
    """Take a sequence in. From now on the thread alone changes it."""

    sequence: Sequence
    priority: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget a sequence; answered in Report.removed when nothing writes to its blocks any more."""

    sequence_id: str


@dataclass(frozen=True, slots=True)
class MoreBlocks:
    """Append blocks to a sequence's table."""

    sequence_id: str
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UseEngine:
    """Go on with another engine, over another arena. The one before is dropped, and with it its mapping."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class DropEngine:
    """The arena is nobody's any more: no step can be taken before there is another engine. Its mapping is given up."""


Command = Add | Cancel | MoreBlocks | UseEngine | DropEngine


class Cores(Protocol):
    """Says how many cores a step may use, and who else wants them."""

    def enter(self, work: StepWork) -> int:
        """A step begins; the cores it may use, >= 1."""
        ...

    def leave(self) -> None:
        """No step follows for now."""
        ...

    def step_slo_of_others_s(self) -> float | None:
        """The tightest step-time SLO of other workers that generate on these cores now, seconds; None: none does."""
        ...


def internal() -> ForebayError:
    """What a sequence fails with that met a defect of ours."""
    return ForebayError("internal error; the worker's log says more")


class EngineThread:
    """Runs steps while there is something to compute, and sleeps otherwise.

    `may_write` is asked before each step, and after it, since a step may take however long: when it says no, all
    sequences fail with WORKER_LOST, and nothing of the step is told.

    An exception in what concerns one sequence, or in a step, fails those sequences with INTERNAL. Any other ends the
    thread: it answers no command from then on, and writes to no block.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        may_write: Callable[[], bool],
        cores: Cores,
        *,
        gather_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: gather_s: see `ReportGathering`."""
        self._engine: Engine | None = engine
        self._scheduler = scheduler
        self._may_write = may_write
        self._cores = cores
        limits = scheduler.limits
        self._budget = ChunkBudget(limits.block_tokens, limits.chunk_tokens, limits.step_slo_s)
        self._clock = clock
        self._meter: StepMeter | None = None
        self._measured: MeasuredStep | None = None  # of the step of this turn
        self._gathering = ReportGathering(gather_s)
        self._commands: deque[Command] = deque()
        self._news = threading.Condition()
        self._is_stopping = False
        self._step_count = 0
        self.step_under_way: int | None = None  # its number; read by other threads
        self._thread: threading.Thread | None = None

    def measure_with(self, meter: StepMeter) -> None:
        """Notes every step there. To be called before `start`."""
        self._meter = meter

    def start(
        self,
        on_report: Callable[[Report], None],
        on_due: Callable[[], None] = lambda: None,
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts the thread.

        On the running loop, `on_report` is called once for each step, perhaps for some together, and `on_due` after the
        last of those whose tokens nobody should wait for any longer; `on_broken` once and last, if the thread ends
        without having been stopped.
        """
        loop = asyncio.get_running_loop()

        def take(telling: Telling) -> None:
            for report in telling.reports:
                on_report(report)
            if telling.is_due:
                on_due()

        def post(telling: Telling) -> None:
            loop.call_soon_threadsafe(take, telling)

        def break_down() -> None:
            loop.call_soon_threadsafe(on_broken)

        self._thread = threading.Thread(target=self._run, args=(post, break_down), name="engine", daemon=True)
        self._thread.start()

    def submit(self, command: Command) -> None:
        """Gives a command; it is obeyed before the next step. Never blocks for longer than a list operation."""
        with self._news:
            self._commands.append(command)
            self._news.notify()

    async def stop(self) -> None:
        """Ends the thread after the step it is in."""
        with self._news:
            self._is_stopping = True
            self._news.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _run(self, post: Callable[[Telling], None], break_down: Callable[[], None]) -> None:
        try:
            self._take_turns(post)
        except Exception:
            _log.exception("the engine's thread cannot go on")
            post(self._gathering.rest())
            break_down()

    def _take_turns(self, post: Callable[[Telling], None]) -> None:
        can_go_on = False
        while True:
            commands = self._wait(can_go_on)
            if commands is None:
                post(self._gathering.rest())
                return
            report = self._turn(commands)
            can_go_on = bool(report.shares)
            telling = self._gathering.add(report)
            if telling is not None:
                post(telling)

    def _wait(self, can_go_on: bool) -> list[Command] | None:
        """Commands given since the last turn; sleeps until there are some, unless a step can go on. None: stop."""
        with self._news:
            if not (can_go_on or self._commands):
                self._cores.leave()
            self._news.wait_for(lambda: can_go_on or self._commands or self._is_stopping)
            if self._is_stopping:
                return None
            commands = list(self._commands)
            self._commands.clear()
            return commands

    def _turn(self, commands: Iterable[Command]) -> Report:
        began_s, self._measured = self._clock(), None
        outcomes: list[Outcome] = []
        removed: list[str] = []
        for command in commands:
            self._obey(command, outcomes, removed)
        slices = self._scheduler.plan_step(self._chunk_tokens())
        shares: tuple[Share, ...] = ()
        engine = self._engine
        if slices and (engine is None or not self._may_write()):
            outcomes += self._fail_all()
        elif slices and engine is not None:
            shares = tuple(
                Share(part.sequence.sequence_id, part.sequence.computed_tokens, part.token_count) for part in slices
            )
            outcomes += self._step(slices, engine)
        stuck = frozenset() if slices else frozenset(self._scheduler.sequence_ids)
        return Report(tuple(outcomes), tuple(removed), shares, stuck, began_s, self._clock(), self._measured)

    def _obey(self, command: Command, outcomes: list[Outcome], removed: list[str]) -> None:
        match command:
            case Add(sequence, priority):
                outcomes += self._guarded(sequence.sequence_id, lambda: self._scheduler.add(sequence, priority))
            case Cancel(sequence_id):
                self._scheduler.cancel(sequence_id)
                removed.append(sequence_id)
            case MoreBlocks(sequence_id, block_ids):
                outcomes += self._guarded(sequence_id, lambda: self._scheduler.grant_blocks(sequence_id, block_ids))
            case UseEngine(engine):
                self._engine = engine
            case DropEngine():
                self._engine = None

    def _guarded(self, sequence_id: str, act: Callable[[], list[Outcome]]) -> list[Outcome]:
        """What came of it; an exception fails the sequence alone."""
        try:
            return act()
        except ForebayError as error:
            return [Failed(sequence_id, error)]
        except Exception:
            _log.exception("a sequence broke the scheduler")
            self._scheduler.cancel(sequence_id)
            return [Failed(sequence_id, internal())]

    def _chunk_tokens(self) -> int:
        return self._budget.chunk_tokens(self._scheduler.is_decoding, self._cores.step_slo_of_others_s())

    def _step(self, slices: list[Slice], engine: Engine) -> list[Outcome]:
        prompt_tokens = sum(part.token_count for part in slices if not part.sequence.is_decoding)
        is_decoding = any(part.sequence.is_decoding for part in slices)
        step_slo_s = self._scheduler.limits.step_slo_s if is_decoding else None
        cores = self._cores.enter(StepWork(self._scheduler.most_urgent(slices), step_slo_s))
        engine.use_threads(cores)
        began_s = self._clock()
        self._step_count += 1
        self.step_under_way = self._step_count
        try:
            sampled = engine.step(slices)
            busy_s = self._clock() - began_s
            self._budget.learn(prompt_tokens, is_decoding, busy_s)
            self._measure(slices, cores, busy_s)
            return self._scheduler.complete(slices, sampled) if self._may_write() else self._fail_all()
        except Exception:
            _log.exception("a step of %d sequences failed", len(slices))
            return self._scheduler.fail(slices, internal())
        finally:
            self.step_under_way = None

    def _measure(self, slices: list[Slice], cores: int, busy_s: float) -> None:
        if self._meter is None:
            return
        try:
            self._measured = self._meter.note(slices, cores, busy_s)
        except Exception:
            _log.exception("a step could not be measured; none is from now on")
            self._meter = None

    def _fail_all(self) -> list[Outcome]:
        error = WorkerLostError("the worker's lease of its KV blocks ran out", retry_after_s=RETRY_AFTER_S)
        lost = self._scheduler.sequence_ids
        for sequence_id in lost:
            self._scheduler.cancel(sequence_id)
        return [Failed(sequence_id, error) for sequence_id in lost]
