"""Ours: evicts what is least likely to be used soon, judged by how often and how long ago it was used.

    rate = (uses + 1) / (age + typical gap)

is the mean of the rate at which a block is used, given its uses and its age, when all that was known before is that
rates scatter about one use per typical gap (the posterior mean under a Gamma(1, gap) prior). Ages and gaps count the
uses of all blocks of the pool, so that nothing depends on the traffic's speed; the gap is the median of those seen,
learned while serving. There is nothing to set: far below the typical gap, where ages tell nothing yet, the rate orders
by count, as LFU does; far above it by age, as LRU does, but of what was used twice as often only at twice the age.

Related: hyperbolic caching (Blankstein et al., ATC 2017: uses per time in the cache, by sampling), which has no prior
and forgets what it evicts. Prefixes keep their order by themselves: a block was used at least as often, and at least as
lately, as those after it, so that its rate is never lower. Why this policy: docs/adr/015.
"""

import heapq
from array import array
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from forebay.kv.eviction.block_queues import BlockQueues
from forebay.kv.eviction.eviction_memory import EvictionMemory

MOST_COUNTED_USES: Final = 15
"""More uses than this do not count, so that what was popular once is forgotten within a few gaps."""
_LEARNING_RATE: Final = 0.005  # each gap seen moves the median by so much of itself


class LowestReuseRate:
    """A queue per use count, each by age; the blocks with the lowest rate are at their fronts."""

    def __init__(self, capacity: int) -> None:
        self._queues = BlockQueues(capacity, queue_count=MOST_COUNTED_USES + 1)
        self._use_counts = bytearray(capacity)
        self._released_at = array("Q", [0]) * capacity
        self._memory = EvictionMemory(capacity)
        self._now = 0  # uses of any block so far
        self._typical_gap = float(max(1, capacity))  # until gaps are seen

    def enter(self, block: int, block_hash: bytes) -> None:
        self._now += 1
        known = self._memory.recall(block_hash)
        if known is None:
            self._use_counts[block] = 1
        else:
            self._use_counts[block] = min(known.use_count + 1, MOST_COUNTED_USES)
            self._learn(self._now - known.moment)

    def use(self, block: int) -> None:
        self._now += 1
        if self._queues.holds(block):
            self._queues.remove(block)
            self._learn(self._now - self._released_at[block])
        if self._use_counts[block] < MOST_COUNTED_USES:
            self._use_counts[block] += 1

    def admit(self, blocks: Sequence[int]) -> None:
        least_count = 0
        for block in blocks:
            # The memory may have lost a beginning and kept its end; whoever used the end has used both.
            least_count = self._use_counts[block] = max(least_count, self._use_counts[block])
            self._released_at[block] = self._now
            self._queues.append(least_count, block)

    def drop(self, block: int, block_hash: bytes) -> None:
        self._queues.remove(block)
        self._memory.remember(block_hash, self._use_counts[block], self._released_at[block])

    def coldest(self, count: int) -> list[int]:
        # Of equal rates the one with fewer uses goes first, which is the later one of a prefix.
        by_rate = heapq.merge(*map(self._by_rate, range(1, MOST_COUNTED_USES + 1)), key=_inverse_rate)
        return [block for _, block in islice(by_rate, count)]

    def __len__(self) -> int:
        return len(self._queues)

    def _by_rate(self, use_count: int) -> Iterator[tuple[float, int]]:
        """Blocks of one use count, lowest rate first, each with -1 / rate."""
        latest = self._now + self._typical_gap
        for block in self._queues.blocks(use_count):
            yield (self._released_at[block] - latest) / (use_count + 1), block

    def _learn(self, gap: int) -> None:
        self._typical_gap *= 1 + _LEARNING_RATE if gap > self._typical_gap else 1 - _LEARNING_RATE


def _inverse_rate(rated: tuple[float, int]) -> float:
    return rated[0]
