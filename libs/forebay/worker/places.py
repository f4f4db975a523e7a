"""Who may be in the engine now, who waits, and who is sent away: so many places, and a bounded queue before them.

Knows no sequences, only their priority. Used on one event loop.
"""

import asyncio
import heapq
from bisect import bisect_left, insort
from contextlib import suppress

from forebay.engine.rank import Rank, rank_of
from forebay.errors import RETRY_AFTER_S, QueueFullError

DEFAULT_QUEUE_LENGTH = 256


class Places:
    """Places of a batch, and as many beside it for those that more urgent ones have pushed out.

    Invariants: whoever comes in is among the first `places`, by rank, of those inside; nobody waits who may come in; at
    most places + pushed_out_at_most are inside.
    """

    def __init__(self, places: int, queue_length: int = DEFAULT_QUEUE_LENGTH, pushed_out_at_most: int = 0) -> None:
        self._places = places
        self._queue_length = queue_length
        self._most_inside = places + pushed_out_at_most
        self._arrivals = 0
        self._inside: list[Rank] = []  # sorted
        self._waiting: list[tuple[Rank, asyncio.Future[None]]] = []  # heap

    @property
    def running_count(self) -> int:
        """Places taken."""
        return min(len(self._inside), self._places)

    @property
    def queued_count(self) -> int:
        """How many wait, those pushed out included."""
        return len(self._waiting) + len(self._inside) - self.running_count

    async def enter(self, priority: int) -> Rank:
        """Waits for a place; `leave` with it must follow. Raises QueueFullError. A cancelled wait holds no place."""
        self._arrivals += 1
        rank = rank_of(self._arrivals, priority)
        if not self._may_enter(rank) and len(self._waiting) >= self._queue_length:
            raise QueueFullError(f"{len(self._waiting)} sequences wait for this worker", retry_after_s=RETRY_AFTER_S)
        await self.come_back(rank)
        return rank

    async def come_back(self, rank: Rank) -> None:
        """Waits for a place that it had, and has left, in the order in which it came first; else as `enter`."""
        if self._may_enter(rank):
            insort(self._inside, rank)
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, place))
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave(rank)  # the place came in the same turn of the loop as the cancel
            with suppress(ValueError):
                self._waiting.remove((rank, place))
                heapq.heapify(self._waiting)
            raise

    def leave(self, rank: Rank) -> None:
        """Gives a place to whoever waits first."""
        self._inside.remove(rank)
        while self._waiting:
            first, place = self._waiting[0]
            if not place.done():
                if not self._may_enter(first):
                    return  # and so may none behind it
                insort(self._inside, first)
                place.set_result(None)
            heapq.heappop(self._waiting)

    def _may_enter(self, rank: Rank) -> bool:
        return bisect_left(self._inside, rank) < self._places and len(self._inside) < self._most_inside
