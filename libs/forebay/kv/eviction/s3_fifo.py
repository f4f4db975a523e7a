"""S3-FIFO (Yang et al., SOSP 2023): a small queue for newcomers, a main queue for what proved itself, a ghost queue.

A newcomer that is used twice again while it passes the small queue goes on to the main one, others are dropped and
remembered as ghosts for a while: who comes back as a ghost enters the main queue at once. The main queue gives another
round to what was used since the last. A block in use keeps its place, and is passed over as one that was used.

Blocks that come together leave in the order of their prefix, last first. Not so those that come later: a beginning that
was used too seldom may leave before an end that another request added, as is the nature of queues by arrival.
"""

from collections.abc import Sequence
from typing import Final

from forebay.kv.eviction.block_queues import BlockQueues
from forebay.kv.eviction.eviction_memory import EvictionMemory

_SMALL, _MAIN = 0, 1
_SMALL_SHARE: Final = 0.1
_MOST_USES: Final = 3
_USES_TO_STAY: Final = 2  # in the small queue


class S3Fifo:
    """Two queues in order of arrival, and the ghosts of the small one."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._main_target = capacity - max(1, int(capacity * _SMALL_SHARE))
        self._queues = BlockQueues(capacity, queue_count=2)
        self._homes = bytearray(capacity)
        self._use_counts = bytearray(capacity)  # since the block was put into its queue
        self._is_evictable = bytearray(capacity)
        self._main_length = 0
        self._evictable_counts = [0, 0]
        self._ghosts = EvictionMemory(capacity)
        self._ghost_count = 0  # so far

    def enter(self, block: int, block_hash: bytes) -> None:
        ghost = self._ghosts.recall(block_hash)
        is_ghost = ghost is not None and self._ghost_count - ghost.moment <= self._capacity
        self._homes[block] = _MAIN if is_ghost else _SMALL
        self._use_counts[block] = 0

    def use(self, block: int) -> None:
        self._use_counts[block] = min(self._use_counts[block] + 1, _MOST_USES)
        if self._is_evictable[block]:
            self._set_evictable(block, 0)

    def admit(self, blocks: Sequence[int]) -> None:
        is_end_in_main = False
        for block in blocks:
            if not self._queues.holds(block):
                # The ghosts may have lost a beginning and kept its end; whoever used the end has used both.
                if is_end_in_main:
                    self._homes[block] = _MAIN
                self._append(block)
            is_end_in_main = self._homes[block] == _MAIN
            self._set_evictable(block, 1)

    def drop(self, block: int, block_hash: bytes) -> None:
        home = self._homes[block]
        self._set_evictable(block, 0)
        self._queues.remove(block)
        self._main_length -= home == _MAIN
        if home == _SMALL:
            self._ghosts.remember(block_hash, 1, self._ghost_count)
            self._ghost_count += 1

    def coldest(self, count: int) -> list[int]:
        """Moves what stays out of the way; what it returns lies at the fronts."""
        victims = [self._take_coldest() for _ in range(min(count, len(self)))]
        for block in reversed(victims):
            home = self._homes[block]
            self._queues.prepend(home, block)
            self._main_length += home == _MAIN
            self._evictable_counts[home] += 1
        return victims

    def __len__(self) -> int:
        return sum(self._evictable_counts)

    def _take_coldest(self) -> int:
        """Takes the next victim out of its queue. Some block is evictable."""
        while True:
            home = self._home_to_evict_from()
            block = self._queues.first(home)
            assert block is not None
            self._queues.remove(block)
            self._main_length -= home == _MAIN
            self._evictable_counts[home] -= self._is_evictable[block]
            if self._is_evictable[block] and self._use_counts[block] < (_USES_TO_STAY if home == _SMALL else 1):
                return block
            self._pass_over(block)

    def _home_to_evict_from(self) -> int:
        is_main_too_long = self._main_length > self._main_target and self._evictable_counts[_MAIN] > 0
        return _MAIN if is_main_too_long or self._evictable_counts[_SMALL] == 0 else _SMALL

    def _pass_over(self, block: int) -> None:
        """Puts a block at the back of the main queue: it was used, or is in use."""
        if self._homes[block] == _SMALL:
            self._homes[block], self._use_counts[block] = _MAIN, 0
        else:
            self._use_counts[block] -= self._use_counts[block] > 0
        self._append(block)
        self._evictable_counts[_MAIN] += self._is_evictable[block]

    def _append(self, block: int) -> None:
        self._queues.append(self._homes[block], block)
        self._main_length += self._homes[block] == _MAIN

    def _set_evictable(self, block: int, is_evictable: int) -> None:
        self._evictable_counts[self._homes[block]] += is_evictable - self._is_evictable[block]
        self._is_evictable[block] = is_evictable
