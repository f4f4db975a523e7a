"""Who gives blocks up when they are short."""

import asyncio
from dataclasses import dataclass, field

import pytest

from forebay.engine.rank import Rank, rank_of
from forebay.engine.types import SamplingParams
from forebay.errors import KvExhaustedError
from forebay.kv.hashing import HashChain
from forebay.worker.engine_thread import Cancel, Command
from forebay.worker.residents import Residents
from forebay.worker.running_sequence import RunningSequence, SequenceCost, SequenceSpec
from forebay.worker.shortage import Shortage

REALTIME, BATCH = 0, 1
STUCK_S = 1.0


@dataclass
class FakeSupply:
    """These wait for blocks, by rank."""

    waiting: list[Rank] = field(default_factory=list)
    shortages: list[int] = field(default_factory=list)

    @property
    def first_waiting(self) -> Rank | None:
        return min(self.waiting, default=None)

    def is_waiting(self, rank: Rank) -> bool:
        return rank in self.waiting

    def note_shortage(self, priority: int) -> None:
        self.shortages.append(priority)


@dataclass
class FakeRights:
    device_block_count: int = 16


@dataclass
class FakeThread:
    commands: list[Command] = field(default_factory=list)

    def submit(self, command: Command) -> None:
        self.commands.append(command)


class Rig:
    """A worker's sequences, all of them in the engine."""

    def __init__(self) -> None:
        self.sequences: dict[str, RunningSequence] = {}
        self.supply, self.thread, self.now_s = FakeSupply(), FakeThread(), 0.0
        residents = Residents(self.sequences, FakeRights(), self.thread, context_tokens=100)  # type: ignore[arg-type]
        self.shortage = Shortage(residents, FakeRights(), self.supply, STUCK_S, lambda: self.now_s)  # type: ignore[arg-type]

    def add(self, name: str, priority: int = REALTIME, table_blocks: int = 4) -> RunningSequence:
        running = RunningSequence(
            spec=SequenceSpec(name, [1], SamplingParams(max_tokens=9, seed=0), bytes(16), priority=priority),
            on_token=lambda token_id, logprobs: None,
            chain=HashChain(bytes(16), 4),
            cost=SequenceCost(opened_s=0.0),
            end=asyncio.get_running_loop().create_future(),
            place=rank_of(len(self.sequences) + 1, priority),
            is_in_engine=True,
            table_blocks=table_blocks,
        )
        self.sequences[name] = running
        return running

    def stand_still(self) -> None:
        """Nobody gets on, for as long as is waited before somebody gives way."""
        self.supply.waiting = [one.place for one in self.sequences.values() if one.place is not None]
        self.shortage.note_stuck(frozenset(self.sequences))
        self.now_s += STUCK_S

    @property
    def taken_out(self) -> list[str]:
        return [one.sequence_id for one in self.thread.commands if isinstance(one, Cancel)]


@pytest.fixture
async def rig() -> Rig:
    return Rig()


async def test_the_last_of_the_less_urgent_is_parked_one_at_a_time(rig: Rig) -> None:
    for name, priority in (("batch-1", BATCH), ("chat", REALTIME), ("batch-2", BATCH)):
        rig.add(name, priority)
    rig.supply.waiting = [rank_of(9, REALTIME)]
    rig.shortage.relieve()
    assert rig.taken_out == ["batch-2"]
    assert rig.sequences["batch-2"].is_parking
    rig.shortage.relieve()
    rig.shortage.relieve_other(REALTIME)
    assert rig.taken_out == ["batch-2"], "what it holds takes a moment to come back"
    rig.sequences.pop("batch-2")
    rig.shortage.relieve_other(REALTIME)
    assert rig.taken_out == ["batch-2", "batch-1"]
    rig.sequences.pop("batch-1")
    rig.shortage.relieve()
    rig.shortage.relieve_other(REALTIME)
    assert rig.taken_out == ["batch-2", "batch-1"], "equals park nobody"
    assert rig.supply.shortages == [REALTIME] * 3


async def test_at_a_standstill_the_last_is_parked_after_a_while(rig: Rig) -> None:
    for name in ("first", "last"):
        rig.add(name, table_blocks=8)
    rig.stand_still()
    rig.now_s -= 0.1
    rig.shortage.relieve()
    assert rig.taken_out == []
    rig.now_s += 0.1
    rig.shortage.relieve()
    assert rig.taken_out == ["last"]
    assert not rig.sequences["last"].end.done()


async def test_what_has_all_blocks_and_needs_more_fails(rig: Rig) -> None:
    alone = rig.add("alone", table_blocks=16)
    rig.stand_still()
    rig.shortage.relieve()
    assert rig.taken_out == ["alone"]
    assert not alone.is_parking
    with pytest.raises(KvExhaustedError, match="all KV blocks"):
        await alone.ended()
