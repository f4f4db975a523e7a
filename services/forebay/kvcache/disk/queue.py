"""The event loop's way to the disk: calls of the store on a few threads, by turns. Knows no files.

When a call returns or raises, the memory it was given is the caller's again. A cancelled call therefore ends at once
only while it waits; once a thread has the memory it ends when the thread does.
"""

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from forebay.errors import DrainingError
from forebay.kvcache.disk.store import DiskStore
from forebay.kvcache.disk.turns import Turn, Turns

_THREAD_COUNT: Final = 4
_UNDER_WAY_AT_MOST: Final = 2 * _THREAD_COUNT
"""As many again as there are threads, so that none waits for the event loop to hear of what it did."""

_NO_SLOT: Final = -1


@dataclass(frozen=True, eq=False)
class _Request(Turn):
    call: Callable[[], None]
    done: "asyncio.Future[None]"


class DiskQueue:
    """Reads and writes of one store. Requests for one slot are carried out in the order of the calls.

    flow: whose request it is, such as all promotions or all write-backs. Flows take turns.
    """

    def __init__(self, store: DiskStore) -> None:
        """The store stays the caller's, to be closed after this."""
        self._store = store
        self._threads = ThreadPoolExecutor(_THREAD_COUNT, "kv-disk")
        self._turns: Turns[_Request] = Turns()
        self._unfinished: set[asyncio.Future[None]] = set()
        self._under_way_count = 0
        self._is_closing = False

    async def read(self, slot: int, block_hash: bytes, into: memoryview, flow: Hashable) -> None:
        """As DiskStore.read. Errors also: DrainingError."""
        await self._run(slot, flow, partial(self._store.read, slot, block_hash, into))

    async def write(self, slot: int, block_hash: bytes, data: memoryview, flow: Hashable) -> None:
        """As DiskStore.write. Errors also: DrainingError.

        When it was cancelled, the slot holds this block or what it held before.
        """
        await self._run(slot, flow, partial(self._store.write, slot, block_hash, data))

    async def forget(self, slot: int, flow: Hashable) -> None:
        """As DiskStore.forget. Errors also: DrainingError."""
        await self._run(slot, flow, partial(self._store.forget, slot))

    async def forget_all(self, flow: Hashable) -> None:
        """As DiskStore.forget_all. Errors also: DrainingError."""
        await self._run(_NO_SLOT, flow, self._store.forget_all)

    async def close(self) -> None:
        """Takes nothing more, and returns when all that was taken is done."""
        self._is_closing = True
        if self._unfinished:
            await asyncio.wait(self._unfinished)
        self._threads.shutdown()

    async def _run(self, slot: int, flow: Hashable, call: Callable[[], None]) -> None:
        if self._is_closing:
            raise DrainingError("the disk tier is closing")
        request = _Request(slot, flow, call, asyncio.get_running_loop().create_future())
        self._unfinished.add(request.done)
        request.done.add_done_callback(self._unfinished.discard)
        self._turns.add(request)
        self._start_some()
        try:
            await asyncio.shield(request.done)
        except asyncio.CancelledError:
            if not request.done.done() and self._turns.withdraw(request):
                request.done.cancel()
                self._start_some()
            else:
                await _outlasting_cancels(request.done)
            raise

    def _start_some(self) -> None:
        while self._under_way_count < _UNDER_WAY_AT_MOST and (request := self._turns.next()) is not None:
            self._under_way_count += 1
            ended = self._threads.submit(request.call)
            ended.add_done_callback(partial(self._tell_loop, request.done.get_loop(), request))

    def _tell_loop(self, loop: asyncio.AbstractEventLoop, request: _Request, ended: "Future[None]") -> None:
        loop.call_soon_threadsafe(self._end, request, ended)

    def _end(self, request: _Request, ended: "Future[None]") -> None:
        self._under_way_count -= 1
        self._turns.end(request)
        error = ended.exception()
        if error is None:
            request.done.set_result(None)
        else:
            request.done.set_exception(error)
        self._start_some()


async def _outlasting_cancels(done: "asyncio.Future[None]") -> None:
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            continue
    done.exception()  # nobody is left to be told
