"""What the runner gives the engine's thread, and what it keeps from it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from forebay.engine.scheduler import Limits
from forebay.engine.types import SamplingParams, TokenLogprobs
from forebay.errors import ForebayError, WorkerLostError
from forebay.telemetry import metrics, spans
from forebay.testing.waiting import until
from forebay.worker.block_supply import Patience
from forebay.worker.engine_thread import Add, Cancel, Command
from forebay.worker.kv_rights import BlockGrant
from forebay.worker.pauses import Pauses, offer_pause_metrics
from forebay.worker.running_sequence import Offer, SequenceSpec
from forebay.worker.sequence_runner import SequenceRunner
from forebay.worker.step_report import Report, Share


@dataclass
class FakeRights:
    """Grants whatever is asked for."""

    owned: set[str] = field(default_factory=set)
    released: list[str] = field(default_factory=list)
    device_block_count: int = 100

    async def acquire(
        self, sequence_id: str, prefix_hashes: list[bytes], block_count: int, tenant: str = "", priority: int = 0
    ) -> BlockGrant:
        self.owned.add(sequence_id)
        return BlockGrant(1, tuple(range(block_count)), 0, 0)

    async def take_over(
        self, sequence_id: str, epoch: int, block_count: int, sealed_count: int | None = None
    ) -> BlockGrant:
        return await self.acquire(sequence_id, [], block_count)

    def owns(self, sequence_id: str) -> bool:
        return sequence_id in self.owned

    def release(self, sequence_id: str) -> None:
        self.owned.discard(sequence_id)
        self.released.append(sequence_id)


@dataclass
class FakeThread:
    """Remembers commands and obeys none."""

    commands: list[Command] = field(default_factory=list)

    def start(
        self, on_report: Callable[[Report], None], on_due: Callable[[], None], on_broken: Callable[[], None]
    ) -> None:
        self.on_report, self.on_due, self.on_broken = on_report, on_due, on_broken

    def submit(self, command: Command) -> None:
        self.commands.append(command)

    @property
    def added(self) -> list[str]:
        return [one.sequence.sequence_id for one in self.commands if isinstance(one, Add)]

    def answer_cancels(self) -> None:
        removed = tuple(one.sequence_id for one in self.commands if isinstance(one, Cancel))
        self.on_report(Report((), removed, (), frozenset(), 0.0, 0.0))


def spec(sequence_id: str, offer: Offer | None = None) -> SequenceSpec:
    return SequenceSpec(sequence_id, [5] * 6, SamplingParams(max_tokens=9, seed=0), bytes(16), offer=offer)


async def test_a_sequence_lost_while_it_waits_for_a_place_never_enters_the_engine() -> None:
    rights, thread = FakeRights(), FakeThread()
    runner = SequenceRunner(Limits(block_tokens=4, context_tokens=100, max_sequences=1), Patience(), lambda _: None)
    runner.connect(rights, thread)

    async def run(sequence: SequenceSpec) -> None:
        async with runner.open(sequence, lambda token_id, logprobs: None) as running:
            await running.ended()

    first = asyncio.create_task(run(spec("first")))
    await until(lambda: thread.added == ["first"])
    second = asyncio.create_task(run(spec("second", Offer(epoch=1, token_count=6))))
    await until(lambda: runner.queued_count == 1)
    assert rights.owns("second"), "its blocks are taken before it waits"
    rights.owned.discard("second")
    runner.on_lost(frozenset({"second"}))
    first.cancel()
    await until(lambda: any(isinstance(one, Cancel) for one in thread.commands))
    thread.answer_cancels()
    with pytest.raises(WorkerLostError):
        await second
    assert thread.added == ["first"]
    assert rights.released == ["first", "second"]
    await runner.wait_idle()


async def test_when_the_engines_thread_has_ended_nobody_waits_for_it() -> None:
    rights, thread, told = FakeRights(), FakeThread(), []
    runner = SequenceRunner(Limits(block_tokens=4, context_tokens=100, max_sequences=2), Patience(), lambda _: None)
    runner.connect(rights, thread, on_broken=lambda: told.append(True))

    async def run(sequence: SequenceSpec) -> None:
        async with runner.open(sequence, ignored) as running:
            await running.ended()

    cancelled, running, waiting = (asyncio.create_task(run(spec(name))) for name in ("cancelled", "running", "waiting"))
    await until(lambda: thread.added == ["cancelled", "running"] and runner.queued_count == 1)
    cancelled.cancel()
    await until(lambda: Cancel("cancelled") in thread.commands)
    thread.on_broken()

    assert told == [True]
    for task in (running, waiting, asyncio.create_task(run(spec("late")))):
        with pytest.raises(ForebayError) as caught:
            await task
        assert caught.value.reason == "INTERNAL"
    assert set(rights.released) == {"cancelled", "running", "waiting", "late"}
    assert thread.added == ["cancelled", "running"]
    await runner.wait_idle()


async def test_what_a_sequence_is_left_out_of_is_told_as_a_pause(reader: InMemoryMetricReader) -> None:
    thread = FakeThread()
    runner = SequenceRunner(Limits(block_tokens=4, context_tokens=100), Patience(), lambda _: None)
    runner.connect(FakeRights(), thread)
    offer_pause_metrics(runner.pauses, "cpu-x")
    async with runner.open(spec("urgent"), ignored) as urgent, runner.open(spec("other"), ignored) as other:
        steps = [
            ("urgent", "other"),
            ("urgent",),
            ("urgent",),
            ("urgent", "other"),
            ("other",),
            ("other",),
            ("urgent",),
        ]
        for number, names in enumerate(steps):
            shares = tuple(Share(name, number, 1) for name in names)
            thread.on_report(Report((), (), shares, frozenset(), number, number + 0.75))
            thread.on_report(Report((), ("unknown",), (), frozenset(), number + 0.75, number + 0.75))  # no step
        assert (other.cost.pauses.count, other.cost.pauses.duration_s) == (1, 3 - 0.75)
        assert urgent.cost.pauses.attributes() == {spans.PAUSES: 1, spans.PAUSED_S: 6 - 3.75}
        assert (runner.pauses.count, runner.pauses.duration_s) == (2, 2.25 + 2.25)
        assert collected(reader) == {metrics.PAUSE_COUNT: 2, metrics.PAUSE_S: 4.5}
    thread.answer_cancels()
    await runner.wait_idle()


def test_a_sequence_that_was_never_left_out_tells_of_no_pause() -> None:
    assert Pauses().attributes() == {}


def ignored(token_id: int, logprobs: TokenLogprobs | None) -> None:
    pass


def collected(reader: InMemoryMetricReader) -> dict[str, float]:
    data = reader.get_metrics_data()
    return {
        one.name: point.value
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for one in scope.metrics
        for point in one.data.data_points
    }


def test_a_shortage_is_nothing_to_a_worker_that_only_starts() -> None:
    runner = SequenceRunner(Limits(block_tokens=4, context_tokens=100), Patience(), lambda _: None)
    runner.on_short(0)
