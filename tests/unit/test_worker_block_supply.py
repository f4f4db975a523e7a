"""Once blocks are short they go to the first by rank; nobody who comes later takes what became free."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from forebay.engine.rank import rank_of
from forebay.errors import InvalidFieldError, KvExhaustedError, WorkerLostError, WriterActiveError
from forebay.testing.waiting import until
from forebay.worker.block_supply import SHORTAGE_S, BlockSupply, Patience, Wish
from forebay.worker.kv_rights import BlockGrant
from forebay.worker.running_sequence import Offer


@dataclass
class FakeRights:
    """So many blocks are free; says who asked for how many."""

    free_blocks: int = 0
    device_block_count: int = 100
    sealed_blocks: int = 0  # of whatever is taken over
    is_being_written: bool = False
    asked: list[tuple[str, int]] = field(default_factory=list)
    priorities: list[int | None] = field(default_factory=list)  # of extensions
    sealed_counts: list[int | None] = field(default_factory=list)  # named when taking over

    async def acquire(
        self, sequence_id: str, prefix_hashes: list[bytes], block_count: int, tenant: str = "", priority: int = 0
    ) -> BlockGrant:
        return self._give(sequence_id, block_count)

    async def extend(self, sequence_id: str, block_count: int, priority: int | None = None) -> BlockGrant:
        self.priorities.append(priority)
        return self._give(sequence_id, block_count)

    async def take_over(
        self, sequence_id: str, epoch: int, block_count: int, sealed_count: int | None = None
    ) -> BlockGrant:
        if self.is_being_written:
            raise WriterActiveError("it may still write", retry_after_s=0.01)
        self.sealed_counts.append(sealed_count)
        return replace(self._give(sequence_id, block_count), cached_block_count=self.sealed_blocks)

    def _give(self, sequence_id: str, block_count: int) -> BlockGrant:
        self.asked.append((sequence_id, block_count))
        if block_count > self.free_blocks:
            raise KvExhaustedError("none")
        self.free_blocks -= block_count
        return BlockGrant(1, tuple(range(block_count)), 0, 0)


def supply_of(rights: FakeRights, **patience: float) -> BlockSupply:
    return BlockSupply(rights, Patience(**patience), block_tokens=4)


def wish(arrival: int, priority: int = 0, blocks: int = 4) -> Wish:
    return Wish(f"new-{arrival}", rank_of(arrival, priority), [], blocks, blocks)


async def test_blocks_go_by_rank_whoever_asked_first_and_for_whatever() -> None:
    rights = FakeRights()
    supply, order = supply_of(rights, blocks_s=60), []

    async def begin(one: Wish) -> None:
        await supply.begin(one)
        order.append(one.sequence_id)

    async def extend(arrival: int, priority: int) -> None:
        await supply.extend(f"old-{arrival}", rank_of(arrival, priority), 4)
        order.append(f"old-{arrival}")

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(begin(wish(9)))
        group.create_task(extend(1, 1))
        group.create_task(extend(3, 0))
        group.create_task(begin(wish(70)))
        await until(lambda: supply.is_waiting(rank_of(1, 1)) and supply.is_waiting(rank_of(70, 0)))
        for number in range(1, 5):
            rights.free_blocks = 4
            await until(lambda number=number: len(order) == number)
    assert order == ["old-3", "new-9", "old-1", "new-70"]
    assert not supply.is_waiting(rank_of(1, 1))


async def test_who_comes_later_does_not_take_the_few_that_the_first_cannot_use() -> None:
    rights = FakeRights()
    supply = supply_of(rights, blocks_s=60)
    first = asyncio.create_task(supply.begin(wish(1, blocks=4)))
    await until(lambda: supply.is_waiting(rank_of(1, 0)))
    rights.free_blocks = 2
    later = asyncio.create_task(supply.extend("later", rank_of(2, 0), 1))
    await until(lambda: supply.is_waiting(rank_of(2, 0)))
    assert ("later", 1) not in rights.asked
    rights.free_blocks = 5
    await asyncio.wait_for(asyncio.gather(first, later), 5)
    assert rights.asked[-2:] == [("new-1", 4), ("later", 1)]


async def test_the_first_takes_a_single_block_where_there_are_not_more() -> None:
    rights = FakeRights(free_blocks=1)
    supply = supply_of(rights)
    assert len((await supply.extend("a", rank_of(1, 0), 3)).block_ids) == 1
    assert rights.asked == [("a", 3), ("a", 1)]
    assert rights.priorities == [None, 0], "nobody else gives up blocks for more than the one that is needed"


async def test_an_offer_takes_nothing_from_those_that_wait() -> None:
    rights = FakeRights()
    supply = supply_of(rights)
    waiting = asyncio.create_task(supply.begin(wish(1, blocks=4)))
    await until(lambda: supply.is_waiting(rank_of(1, 0)))
    rights.free_blocks = 3
    await supply.take_over("offered", Offer(epoch=1, token_count=0), 3)
    assert rights.asked[-1] == ("offered", 0)
    rights.free_blocks = 9
    await asyncio.wait_for(waiting, 5)
    await supply.take_over("offered", Offer(epoch=1, token_count=0), 5)
    assert rights.asked[-1] == ("offered", 5)


@pytest.mark.parametrize(("token_count", "sealed_blocks"), [(9, 0), (4, 2)], ids=["fewer", "sealed"])
async def test_an_offer_of_other_tokens_than_its_blocks_hold_is_refused(token_count: int, sealed_blocks: int) -> None:
    supply = supply_of(FakeRights(free_blocks=2, sealed_blocks=sealed_blocks))
    with pytest.raises(InvalidFieldError) as caught:
        await supply.take_over("offered", Offer(epoch=1, token_count=token_count), 2)
    assert caught.value.field == "manifest.token_count"


async def test_what_a_lost_worker_left_is_taken_with_its_full_blocks_sealed_and_not_waited_for_long() -> None:
    rights = FakeRights(free_blocks=9)
    supply = supply_of(rights, writer_s=600)
    await supply.take_over("offered", Offer(epoch=1, token_count=9), 3)
    await supply.take_over("left", Offer(epoch=1, token_count=9, is_left_behind=True), 3)
    assert rights.sealed_counts == [None, 2]
    rights.is_being_written = True
    with pytest.raises(WorkerLostError):
        await asyncio.wait_for(supply.take_over("left", Offer(epoch=1, token_count=9, is_left_behind=True), 3), 60)


async def test_who_gave_up_waiting_is_in_nobody_s_way() -> None:
    rights = FakeRights()
    supply = supply_of(rights, blocks_s=0.05)
    with pytest.raises(KvExhaustedError) as caught:
        await supply.begin(wish(1))
    assert caught.value.retry_after_s is not None
    behind = asyncio.create_task(supply.extend("b", rank_of(5, 0), 2))
    first = asyncio.create_task(supply.extend("a", rank_of(2, 0), 2))
    await until(lambda: supply.is_waiting(rank_of(2, 0)) and supply.is_waiting(rank_of(5, 0)))
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    rights.free_blocks = 2
    assert len((await asyncio.wait_for(behind, 5)).block_ids) == 2


async def test_every_refusal_is_told() -> None:
    rights, refusals = FakeRights(), []
    supply = BlockSupply(rights, Patience(), 4, lambda: refusals.append(len(rights.asked)))
    waiting = asyncio.create_task(supply.extend("a", rank_of(1, 0), 1))
    await until(lambda: len(refusals) >= 2)
    rights.free_blocks = 1
    await asyncio.wait_for(waiting, 5)


async def test_while_another_worker_is_short_the_less_urgent_do_not_even_ask() -> None:
    rights = FakeRights(free_blocks=9)
    supply = supply_of(rights)
    supply.note_shortage(0)
    batch = asyncio.create_task(supply.extend("batch", rank_of(1, 1), 1))
    await asyncio.sleep(0)  # it has begun
    await supply.extend("chat", rank_of(2, 0), 1)
    assert rights.asked == [("chat", 1)]
    await asyncio.wait_for(batch, 5)
    assert rights.asked == [("chat", 1), ("batch", 1)]


async def test_what_becomes_free_while_another_worker_is_short_is_not_for_the_less_urgent_that_wait() -> None:
    rights, clock = FakeRights(), asyncio.get_running_loop().time
    supply = supply_of(rights)
    batch = asyncio.create_task(supply.extend("batch", rank_of(1, 1), 1))
    await until(lambda: supply.is_waiting(rank_of(1, 1)) and bool(rights.asked))
    short_s = clock()
    supply.note_shortage(0)
    rights.free_blocks = 1
    await asyncio.wait_for(batch, 5)
    assert clock() >= short_s + SHORTAGE_S


async def test_batch_waits_for_blocks_when_realtime_gives_up() -> None:
    rights = FakeRights()
    supply = supply_of(rights, blocks_s=0.05)
    batch = asyncio.create_task(supply.begin(wish(1, priority=1)))
    await until(lambda: supply.is_waiting(rank_of(1, 1)))
    with pytest.raises(KvExhaustedError):
        await supply.begin(wish(2))
    rights.free_blocks = 4
    assert len((await asyncio.wait_for(batch, 5)).block_ids) == 4
