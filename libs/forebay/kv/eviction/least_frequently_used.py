"""LFU: evicts what was used least often, of these what was released longest ago. Remembers counts of what is gone."""

from collections.abc import Sequence
from itertools import chain, islice

from forebay.kv.eviction.block_queues import BlockQueues
from forebay.kv.eviction.eviction_memory import MOST_USES, EvictionMemory


class LeastFrequentlyUsed:
    """A queue per use count, each in the order of release."""

    def __init__(self, capacity: int) -> None:
        self._queues = BlockQueues(capacity, queue_count=MOST_USES + 1)
        self._use_counts = bytearray(capacity)
        self._memory = EvictionMemory(capacity)

    def enter(self, block: int, block_hash: bytes) -> None:
        known = self._memory.recall(block_hash)
        self._use_counts[block] = 1 if known is None else min(known.use_count + 1, MOST_USES)

    def use(self, block: int) -> None:
        if self._queues.holds(block):
            self._queues.remove(block)
        self._use_counts[block] = min(self._use_counts[block] + 1, MOST_USES)

    def admit(self, blocks: Sequence[int]) -> None:
        least_count = 0
        for block in blocks:
            # The memory may have lost a beginning and kept its end; whoever used the end has used both.
            least_count = self._use_counts[block] = max(least_count, self._use_counts[block])
            self._queues.append(least_count, block)

    def drop(self, block: int, block_hash: bytes) -> None:
        self._queues.remove(block)
        self._memory.remember(block_hash, self._use_counts[block], moment=0)  # counts have no time here

    def coldest(self, count: int) -> list[int]:
        by_use_count = map(self._queues.blocks, range(1, MOST_USES + 1))
        return list(islice(chain.from_iterable(by_use_count), count))

    def __len__(self) -> int:
        return len(self._queues)
