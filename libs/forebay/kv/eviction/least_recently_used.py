"""LRU: evicts what was released longest ago. Remembers nothing of what is gone."""

from collections.abc import Sequence
from itertools import islice

from forebay.kv.eviction.block_queues import BlockQueues


class LeastRecentlyUsed:
    """One queue, in the order of release."""

    def __init__(self, capacity: int) -> None:
        self._queue = BlockQueues(capacity, queue_count=1)

    def enter(self, block: int, block_hash: bytes) -> None:
        """A first use says nothing yet."""

    def use(self, block: int) -> None:
        if self._queue.holds(block):
            self._queue.remove(block)

    def admit(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._queue.append(0, block)

    def drop(self, block: int, block_hash: bytes) -> None:
        self._queue.remove(block)

    def coldest(self, count: int) -> list[int]:
        return list(islice(self._queue.blocks(0), count))

    def __len__(self) -> int:
        return len(self._queue)
