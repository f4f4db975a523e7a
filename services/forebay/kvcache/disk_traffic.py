"""Carries the DISK tier's reads and writes out, one task each, and tells when they have ended. Decides nothing."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from forebay.errors import BlockCorruptError, DiskFailedError, DrainingError
from forebay.kv.effects import ReadSlot, WriteSlot
from forebay.kvcache.disk.queue import DiskQueue

_WRITE_BACK: Final = "write-back"
_PROMOTION: Final = "promotion"
_VERIFICATION: Final = "verification"


class DiskListener(Protocol):
    """Hears on the event loop how each read and write ended; must not block."""

    def on_written(self, write: WriteSlot, *, is_good: bool) -> None:
        """The HOST block and the slot are not touched any more."""
        ...

    def on_read(self, read: ReadSlot, *, is_good: bool, is_source_bad: bool) -> None:
        """The slot and the HOST block are not touched any more."""
        ...

    def on_disk_failed(self) -> None:
        """Nothing can be read or written any more. Told once, before what was under way ends."""
        ...


class DiskTraffic:
    """What is under way. host_block: memory of a HOST block."""

    def __init__(self, queue: DiskQueue, host_block: Callable[[int], memoryview], listener: DiskListener) -> None:
        self._queue = queue
        self._host_block = host_block
        self._listener = listener
        self._tasks: set[asyncio.Task[None]] = set()
        self._has_failed = False
        self._scratch = memoryview(bytearray(len(host_block(0))))

    def start(self, writes: Sequence[WriteSlot], reads: Sequence[ReadSlot]) -> None:
        """Begins them; each ends with a call of the listener."""
        for write in writes:
            self._spawn(self._write(write))
        for read in reads:
            self._spawn(self._read(read))

    async def is_whole(self, slot: int, block_hash: bytes) -> bool:
        """Reads a block and compares it with its digest. Errors: DiskFailedError, DrainingError."""
        try:
            await self._queue.read(slot, block_hash, self._scratch, _VERIFICATION)
        except BlockCorruptError:
            await self._queue.forget(slot, _VERIFICATION)
            return False
        except DiskFailedError:
            self._fail()
            raise
        return True

    async def close(self) -> None:
        """Ends when everything under way has."""
        await self._queue.close()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, write: WriteSlot) -> None:
        is_good = False
        try:
            await self._queue.write(write.slot, write.block_hash, self._host_block(write.host_index), _WRITE_BACK)
            is_good = True
        except DiskFailedError:
            self._fail()
        except DrainingError:
            pass  # it is stopping: what was not written is not kept
        finally:
            self._listener.on_written(write, is_good=is_good)

    async def _read(self, read: ReadSlot) -> None:
        is_good = is_source_bad = False
        try:
            await self._queue.read(read.slot, read.block_hash, self._host_block(read.host_index), _PROMOTION)
            is_good = True
        except BlockCorruptError:
            is_source_bad = True
            with suppress(DiskFailedError, DrainingError):
                await self._queue.forget(read.slot, _PROMOTION)
        except DiskFailedError:
            self._fail()
        except DrainingError:
            pass
        finally:
            self._listener.on_read(read, is_good=is_good, is_source_bad=is_source_bad)

    def _fail(self) -> None:
        if not self._has_failed:
            self._has_failed = True
            self._listener.on_disk_failed()
