"""Who may run now, who waits, and who is sent away: so many places, and a bounded queue before them.

Knows no sequences, only their priority. Used on one event loop.
"""

import asyncio
import heapq
from contextlib import suppress

from forebay.errors import RETRY_AFTER_S, QueueFullError

DEFAULT_QUEUE_LENGTH = 256


class Places:
    """Invariant: nobody waits while a place is free; among equals, first come first served."""

    def __init__(self, places: int, queue_length: int = DEFAULT_QUEUE_LENGTH) -> None:
        self._places = places
        self._queue_length = queue_length
        self._running = 0
        self._arrivals = 0
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # heap of (priority, arrival, place)

    @property
    def running_count(self) -> int:
        """Places taken."""
        return self._running

    @property
    def queued_count(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def enter(self, priority: int) -> None:
        """Waits for a place; `leave` must follow. Raises QueueFullError. A cancelled wait holds no place."""
        if self._running < self._places:
            self._running += 1
            return
        if len(self._waiting) >= self._queue_length:
            raise QueueFullError(f"{len(self._waiting)} sequences wait for this worker", retry_after_s=RETRY_AFTER_S)
        self._arrivals += 1
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ticket = (priority, self._arrivals, place)
        heapq.heappush(self._waiting, ticket)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.leave()  # the place came in the same turn of the loop as the cancel
            with suppress(ValueError):
                self._waiting.remove(ticket)
                heapq.heapify(self._waiting)
            raise

    def leave(self) -> None:
        """Gives the place to whoever waits first."""
        while self._waiting:
            place = heapq.heappop(self._waiting)[2]
            if not place.done():
                place.set_result(None)
                return
        self._running -= 1
