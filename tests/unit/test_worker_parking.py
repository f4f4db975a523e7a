"""A parked sequence leaves the engine, gives all back, and comes back once; whatever happens to it on the way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from forebay.engine.scheduler import Finished, FinishReason, Limits
from forebay.engine.types import SamplingParams
from forebay.errors import DrainingError, ForebayError, IsolatedError, TenantQuotaError
from forebay.testing.waiting import until
from forebay.worker.block_supply import Patience
from forebay.worker.engine_thread import Add, Cancel, Command
from forebay.worker.kv_rights import BlockGrant
from forebay.worker.running_sequence import RunningSequence, SequenceSpec
from forebay.worker.sequence_runner import SequenceRunner
from forebay.worker.step_report import Report


@dataclass
class FakeRights:
    """Grants whatever is asked for, until it refuses with an error."""

    refuses_with: ForebayError | None = None
    device_block_count: int = 100
    parked: list[str] = field(default_factory=list)

    async def acquire(
        self, sequence_id: str, prefix_hashes: list[bytes], block_count: int, tenant: str = "", priority: int = 0
    ) -> BlockGrant:
        if self.refuses_with is not None:
            raise self.refuses_with
        return BlockGrant(1, tuple(range(block_count)), 0, 0)

    async def park(self, sequence_id: str) -> None:
        self.parked.append(sequence_id)

    def owns(self, sequence_id: str) -> bool:
        return True

    def release(self, sequence_id: str) -> None:
        pass


class Rig:
    """A runner whose engine's thread remembers commands, and obeys when it is told to."""

    def __init__(self, runner: SequenceRunner, rights: FakeRights) -> None:
        self.runner, self.rights = runner, rights
        self._commands: list[Command] = []
        runner.connect(rights, self)  # type: ignore[arg-type]  # both parts are played

    def start(self, on_report, on_due, on_broken) -> None:  # type: ignore[no-untyped-def]
        self._on_report = on_report

    def submit(self, command: Command) -> None:
        self._commands.append(command)

    def added(self, name: str) -> int:
        return sum(isinstance(one, Add) and one.sequence.sequence_id == name for one in self._commands)

    def let_go(self, *outcomes: Finished) -> None:
        """The engine has let go of all that it was to forget."""
        removed = tuple(one.sequence_id for one in self._commands if isinstance(one, Cancel))
        self._commands = [one for one in self._commands if not isinstance(one, Cancel)]
        self._on_report(Report(outcomes, removed, (), frozenset(), 0.0, 0.0))

    def park(self, running: RunningSequence) -> None:
        self.runner.on_short(0)
        assert running.is_parking
        assert Cancel(running.sequence_id) in self._commands

    @asynccontextmanager
    async def batch(self) -> AsyncIterator[RunningSequence]:
        spec = SequenceSpec("batch", [5] * 6, SamplingParams(max_tokens=9, seed=0), bytes(16), priority=1)
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(self.runner.open(spec, lambda token_id, logprobs: None))
            await until(lambda: self.added("batch") == 1)
            yield running
        self.let_go()
        await asyncio.wait_for(self.runner.wait_idle(), 5)
        assert (self.runner.running_count, self.runner.queued_count) == (0, 0), "its place was left once"


@pytest.fixture
async def rig() -> Rig:
    limits = Limits(block_tokens=4, context_tokens=100, max_sequences=1)
    return Rig(SequenceRunner(limits, Patience(), lambda _: None), FakeRights())  # type: ignore[arg-type, return-value]


async def test_it_comes_back_to_the_one_place_there_is(rig: Rig) -> None:
    async with rig.batch() as running:
        for time in (1, 2):
            rig.park(running)
            rig.let_go()
            await until(lambda time=time: rig.added("batch") == 1 + time)  # type: ignore[misc]
            assert (rig.runner.running_count, rig.runner.queued_count) == (1, 0)
            assert running.cost.parks == time
        assert rig.rights.parked == ["batch"] * 2


async def test_what_ends_on_its_way_out_does_not_come_back(rig: Rig) -> None:
    async with rig.batch() as running:
        rig.park(running)
        rig.let_go(Finished("batch", FinishReason.LENGTH))
        assert await running.ended() is FinishReason.LENGTH
        assert running.coming_back is None
    assert rig.rights.parked == []


async def test_what_is_refused_on_its_way_back_is_told_so(rig: Rig) -> None:
    async with rig.batch() as running:
        rig.park(running)
        rig.rights.refuses_with = TenantQuotaError("the tenant has enough")
        rig.let_go()
        with pytest.raises(TenantQuotaError):
            await asyncio.wait_for(running.ended(), 5)


async def test_on_a_worker_that_drains_it_does_not_come_back(rig: Rig) -> None:
    async with rig.batch() as running:
        rig.park(running)
        rig.runner.move_on()
        rig.let_go()
        with pytest.raises(DrainingError):
            await asyncio.wait_for(running.ended(), 5)
        assert rig.added("batch") == 1


async def test_what_is_parked_when_the_worker_drains_ends(rig: Rig) -> None:
    async with rig.batch() as running:
        rig.park(running)
        rig.let_go()
        rig.runner.move_on()  # before it has come back
        with pytest.raises(DrainingError):
            await asyncio.wait_for(running.ended(), 5)


async def test_what_may_take_the_worker_down_does_not_run_beside_others(rig: Rig) -> None:
    alone = SequenceSpec("alone", [5], SamplingParams(max_tokens=9, seed=0), bytes(16), is_alone=True)
    async with rig.batch():
        with pytest.raises(IsolatedError, match="this one runs 1"):
            await rig.runner.open(alone, lambda token_id, logprobs: None).__aenter__()


async def test_what_its_user_leaves_while_it_is_parked_does_not_come_back(rig: Rig) -> None:
    async with rig.batch() as running:
        rig.park(running)
        rig.let_go()
        coming_back = running.coming_back
    assert coming_back is not None
    await asyncio.gather(coming_back, return_exceptions=True)
    assert rig.added("batch") == 1
