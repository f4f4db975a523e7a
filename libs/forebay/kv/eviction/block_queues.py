"""Queues of blocks, threaded through two arrays: 8 bytes a block, whatever the number of queues.

Knows nothing of why a block is in a queue. A block is in one queue at most.
"""

from array import array
from collections.abc import Iterator


class BlockQueues:
    """Doubly linked queues, numbered from 0, of the blocks 0..capacity - 1."""

    def __init__(self, capacity: int, queue_count: int) -> None:
        # Queue q is a ring closed by entry capacity + q. An entry linked to itself is a block in no queue, or an empty
        # queue.
        self._capacity = capacity
        self._next = array("i", range(capacity + queue_count))
        self._previous = array("i", range(capacity + queue_count))
        self._length = 0

    def __len__(self) -> int:
        """Blocks in all queues."""
        return self._length

    def holds(self, block: int) -> bool:
        """Whether the block is in a queue."""
        return self._next[block] != block

    def first(self, queue: int) -> int | None:
        """The block at the front."""
        ring = self._capacity + queue
        block = self._next[ring]
        return None if block == ring else block

    def blocks(self, queue: int) -> Iterator[int]:
        """From front to back. The queue may not change meanwhile."""
        following, ring = self._next, self._capacity + queue
        block = following[ring]
        while block != ring:
            yield block
            block = following[block]

    def append(self, queue: int, block: int) -> None:
        """Puts a block that is in no queue at the back."""
        ring = self._capacity + queue
        self._link(self._previous[ring], block, ring)

    def prepend(self, queue: int, block: int) -> None:
        """Puts a block that is in no queue at the front."""
        ring = self._capacity + queue
        self._link(ring, block, self._next[ring])

    def remove(self, block: int) -> None:
        """Takes a block out of its queue."""
        before, after = self._previous[block], self._next[block]
        self._next[before] = after
        self._previous[after] = before
        self._next[block] = block
        self._length -= 1

    def _link(self, before: int, block: int, after: int) -> None:
        self._next[before] = self._previous[after] = block
        self._next[block] = after
        self._previous[block] = before
        self._length += 1
