"""One tier's blocks over random interleavings, with every policy."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.kv.eviction.least_frequently_used import LeastFrequentlyUsed
from forebay.kv.eviction.least_recently_used import LeastRecentlyUsed
from forebay.kv.eviction.policy import NewPolicy
from forebay.kv.eviction.reuse_rate import LowestReuseRate
from forebay.kv.eviction.s3_fifo import S3Fifo
from forebay.kv.pool import BlockPool
from forebay.kv.tier import Tier

CAPACITY = 9
OPERATIONS = ("lease", "free", "seal", "reference", "unreference", "evict", "adopt")
STEPS = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 99)), max_size=120)


class PoolStory:
    """A pool, and what it must hold."""

    def __init__(self, policy: NewPolicy) -> None:
        self.pool = BlockPool(Tier.DEVICE, CAPACITY, policy)
        self.leased: list[int] = []
        self.hash_of: dict[int, bytes | None] = {}  # of the sealed
        self.references: dict[int, int] = {}

    def lease(self, number: int) -> None:
        self.leased += self.pool.lease(number % (self.pool.free_count + 1))

    def free(self, number: int) -> None:
        if self.leased:
            self.pool.free([self.leased.pop(number % len(self.leased))])

    def seal(self, number: int) -> None:
        if self.leased:
            block, name = self.leased.pop(), bytes([number % 20]) * 16
            self.hash_of[block] = None if self.pool.find(name) is not None else name
            self.references[block] = 1
            self.pool.seal(block, self.hash_of[block])

    def reference(self, number: int) -> None:
        if self.references:
            block = self._one_of(list(self.references), number)
            self.references[block] += 1
            self.pool.reference(block)

    def unreference(self, number: int) -> None:
        held = [block for block, count in self.references.items() if count > 0]
        run = held[: number % 4]
        for block in run:
            self.references[block] -= 1
            if self.references[block] == 0 and self.hash_of[block] is None:
                del self.references[block], self.hash_of[block]
        self.pool.unreference(run)

    def evict(self, number: int) -> None:
        for block in self.pool.coldest(number % 4):
            assert self.references.pop(block) == 0
            assert self.pool.drop(block) == self.hash_of.pop(block)

    def adopt(self, number: int) -> None:
        name, block = bytes([number % 20]) * 16, number % (CAPACITY + 2)
        is_free = block < CAPACITY and block not in self.leased and block not in self.hash_of
        is_new = is_free and self.pool.find(name) is None
        assert self.pool.adopt([(block, name)]) == ([(block, name)] if is_new else [])
        if is_new:
            self.hash_of[block], self.references[block] = name, 0

    def check(self) -> None:
        counts = self.pool.counts()
        assert counts.free + counts.leased + counts.sealed == CAPACITY
        assert (counts.leased, counts.sealed) == (len(self.leased), len(self.hash_of))
        assert counts.referenced == sum(count > 0 for count in self.references.values())
        names = [bytes([number]) * 16 for number in range(20)]
        block_of = {name: block for block, name in self.hash_of.items() if name is not None}
        assert self.pool.find_each(names) == list(map(block_of.get, names)) == list(map(self.pool.find, names))
        assert sorted(self.pool.hashes()) == sorted(block_of)
        assert set(self.pool.coldest(CAPACITY)) == {block for block, count in self.references.items() if count == 0}
        assert all(self.pool.is_idle(block) == (count == 0) for block, count in self.references.items())

    @staticmethod
    def _one_of(blocks: list[int], number: int) -> int:
        return blocks[number % len(blocks)]


@pytest.mark.parametrize("policy", [LeastRecentlyUsed, LeastFrequentlyUsed, S3Fifo, LowestReuseRate])
@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_blocks_are_one_thing_at_a_time_and_only_idle_ones_are_evicted(
    policy: NewPolicy, steps: list[tuple[str, int]]
) -> None:
    story = PoolStory(policy)
    for name, number in steps:
        getattr(story, name)(number)
        story.check()
