"""The event loop's way to the disk: bounded, fair, safe to cancel, drained at its end."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

import pytest

from forebay.errors import BlockCorruptError, DiskFailedError, DrainingError
from forebay.kvcache.disk.queue import DiskQueue
from forebay.kvcache.disk.shape import FileShape
from forebay.kvcache.disk.store import DiskStore
from forebay.testing.torn_file import TornFile
from forebay.testing.waiting import until

SHAPE = FileShape(block_bytes=64, block_count=64)
HASH = b"h" * 16
BLOCK = memoryview(b"x" * 64)


class GatedFile(TornFile):
    """Its reads of blocks wait for a gate; it counts who waits."""

    def __init__(self) -> None:
        super().__init__(SHAPE.size_bytes)
        self.gate = threading.Event()
        self.entered: list[int] = []

    def read_at(self, offset: int, into: memoryview) -> None:
        if offset >= SHAPE.data_offset:
            self.entered.append((offset - SHAPE.data_offset) // SHAPE.stride_bytes)
            assert self.gate.wait(20)
        super().read_at(offset, into)


@asynccontextmanager
async def queue_on(file: TornFile) -> AsyncIterator[DiskQueue]:
    store = DiskStore(file, SHAPE)
    for slot in range(SHAPE.block_count):
        store.write(slot, HASH, BLOCK)
    queue = DiskQueue(store)
    try:
        yield queue
    finally:
        if isinstance(file, GatedFile):
            file.gate.set()
        await queue.close()


def begun(call: Awaitable[None]) -> "asyncio.Task[None]":
    return asyncio.ensure_future(call)  # type: ignore[arg-type,return-value]


def into() -> memoryview:
    return memoryview(bytearray(64))


async def test_blocks_go_through_it() -> None:
    async with queue_on(TornFile(SHAPE.size_bytes)) as queue:
        data = [bytes([slot]) * 64 for slot in range(64)]
        await asyncio.gather(*(queue.write(slot, HASH, memoryview(data[slot]), "w") for slot in range(64)))
        read = [into() for _ in range(64)]
        await asyncio.gather(*(queue.read(slot, HASH, read[slot], slot % 5) for slot in range(64)))
        assert [bytes(each) for each in read] == data
        await queue.forget(3, "w")
        with pytest.raises(BlockCorruptError):
            await queue.read(3, HASH, into(), "r")


async def test_requests_for_one_slot_are_carried_out_in_the_order_of_the_calls() -> None:
    async with queue_on(TornFile(SHAPE.size_bytes)) as queue:
        for round_number in range(50):
            block, other = into(), into()
            first, second = bytes([round_number]) * 16, bytes([255 - round_number]) * 16
            await asyncio.gather(
                queue.write(7, first, memoryview(bytes([round_number]) * 64), "a"),
                queue.read(7, first, block, "b"),
                queue.forget(7, "c"),
                queue.write(7, second, memoryview(bytes([255 - round_number]) * 64), "d"),
                queue.read(7, second, other, "a"),
            )
            assert (bytes(block), bytes(other)) == (bytes([round_number]) * 64, bytes([255 - round_number]) * 64)


async def test_few_are_under_way_and_flows_take_turns() -> None:
    file = GatedFile()
    async with queue_on(file) as queue:
        many = [begun(queue.read(slot, HASH, into(), "many")) for slot in range(60)]
        await until(lambda: len(file.entered) == 4)
        one = begun(queue.read(63, HASH, into(), "one"))
        await asyncio.sleep(0)
        assert len(file.entered) == 4, "as many as there are threads"
        file.gate.set()
        await one
        await asyncio.gather(*many)
        assert file.entered.index(63) < 40, "it did not wait for them all"


async def test_a_cancelled_call_that_waits_ends_at_once_and_never_touches_its_memory() -> None:
    file = GatedFile()
    async with queue_on(file) as queue:
        others = [begun(queue.read(slot, HASH, into(), "others")) for slot in range(20)]
        await until(lambda: len(file.entered) == 4)
        memory = into()
        waiting = begun(queue.read(40, HASH, memory, "others"))
        behind = begun(queue.read(0, HASH, into(), "behind the one that has slot 0"))
        await asyncio.sleep(0)
        for task in (waiting, behind):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        file.gate.set()
        await asyncio.gather(*others)
        assert 40 not in file.entered
        assert bytes(memory) == bytes(64)


async def test_a_cancelled_call_whose_memory_a_thread_has_ends_with_the_thread() -> None:
    file = GatedFile()
    async with queue_on(file) as queue:
        memory = into()
        reading = begun(queue.read(5, HASH, memory, "r"))
        await until(lambda: file.entered == [5])
        for _ in range(3):
            reading.cancel()
            await asyncio.sleep(0)
        assert not reading.done(), "the thread may write to the memory yet"
        file.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert bytes(memory) == bytes(BLOCK)
        await queue.read(5, HASH, memory, "r")


async def test_a_call_cancelled_in_the_moment_it_ends_is_over() -> None:
    async with queue_on(TornFile(SHAPE.size_bytes)) as queue:
        for yields in range(12):
            task = begun(queue.read(1, HASH, into(), "r"))
            for _ in range(yields):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        await queue.read(1, HASH, into(), "r")


async def test_failure_reaches_every_call_and_ends_none_of_the_rest() -> None:
    file = GatedFile()
    async with queue_on(file) as queue:
        calls = [begun(queue.read(slot, HASH, into(), slot)) for slot in range(30)]
        await until(lambda: len(file.entered) == 4)
        file.error = OSError(5, "Input/output error")
        file.gate.set()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(each) for each in results} == {DiskFailedError}
        with pytest.raises(DiskFailedError):
            await queue.write(1, HASH, BLOCK, "w")


async def test_close_finishes_what_was_taken_and_takes_nothing_more() -> None:
    file = GatedFile()
    async with queue_on(file) as queue:
        reads = [begun(queue.read(slot, HASH, into(), "r")) for slot in range(20)]
        await until(lambda: len(file.entered) == 4)
        closing = begun(queue.close())
        await asyncio.sleep(0)
        with pytest.raises(DrainingError):
            await queue.read(1, HASH, into(), "r")
        assert not closing.done()
        file.gate.set()
        await closing
        assert all(task.done() for task in reads)
        await asyncio.gather(*reads)
