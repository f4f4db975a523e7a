"""The blocks of one tier: which are free, leased or sealed, what the sealed ones hold, and who refers to them.

Does not know sequences, workers, leases or other tiers. Memory: every list and dictionary here has at most one entry
per block, so that the index is bounded by the tier's capacity: 160 to 185 bytes a block, what its eviction policy keeps
and remembers included, when all are sealed and idle. Every capacity / 4 evictions the index is rebuilt to keep it so,
which takes some 0.1 s at a million blocks.

Invariants, per block: its state is one byte, so it is never two things at once; it has a hash exactly when it is sealed
and findable; it is with the eviction policy exactly when it has a hash and no references.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from forebay.kv.eviction.policy import NewPolicy
from forebay.kv.tier import Tier

_FREE, _LEASED, _SEALED = 0, 1, 2
_REBUILD_SHARE = 4  # of the capacity: so many drops between two rebuilds of the index


@dataclass(frozen=True, slots=True)
class TierCounts:
    """Blocks of one tier; free + leased + sealed = capacity; referenced: sealed ones in use."""

    tier: Tier
    capacity: int
    free: int
    leased: int
    sealed: int
    referenced: int


class BlockPool:
    """Free, leased and sealed blocks of one tier."""

    def __init__(self, tier: Tier, capacity: int, new_policy: NewPolicy) -> None:
        self.tier = tier
        self.capacity = capacity
        self._policy = new_policy(capacity)
        self._states = bytearray(capacity)
        self._free = list(range(capacity - 1, -1, -1))  # a stack: a block just freed is warm
        self._references = array("I", [0]) * capacity
        self._hash_by_block: list[bytes | None] = [None] * capacity
        self._block_by_hash: dict[bytes, int] = {}
        self._drops_since_rebuild = 0
        # Which block came after each in a prefix, as far as is known: a guess, to be compared with the hash.
        self._followers = array("I", [0]) * max(1, capacity)
        self._last_sealed = 0  # most often the one before the next in a prefix

    @property
    def free_count(self) -> int:
        """Blocks that nobody needs."""
        return len(self._free)

    @property
    def evictable_count(self) -> int:
        """Sealed blocks that nobody refers to."""
        return len(self._policy)

    def counts(self) -> TierCounts:
        """Blocks by state."""
        sealed = self._states.count(_SEALED)
        return TierCounts(
            tier=self.tier,
            capacity=self.capacity,
            free=len(self._free),
            leased=self._states.count(_LEASED),
            sealed=sealed,
            referenced=sealed - len(self._policy),
        )

    def find(self, block_hash: bytes) -> int | None:
        """The sealed block with this hash. Changes no recency."""
        return self._block_by_hash.get(block_hash)

    def find_each(self, block_hashes: Sequence[bytes]) -> list[int | None]:
        """For each hash the sealed block that has it. Changes no recency.

        A prefix of thousands of blocks lies in no processor cache; what followed a block the last time lies where that
        lay, mostly, and is looked at first.
        """
        get, hash_by_block, followers = self._block_by_hash.get, self._hash_by_block, self._followers
        found: list[int | None] = []
        block: int | None = None
        for block_hash in block_hashes:
            if block is None:
                block = get(block_hash)
            elif hash_by_block[followers[block]] == block_hash:
                block = followers[block]
            else:
                follower = get(block_hash)
                if follower is not None:
                    followers[block] = follower
                block = follower
            found.append(block)
        return found

    def hash_of(self, block: int) -> bytes:
        """Under which this sealed block is found. The caller has made sure that it is."""
        block_hash = self._hash_by_block[block]
        assert block_hash is not None
        return block_hash

    def hashes(self) -> list[bytes]:
        """Hashes of all findable blocks."""
        return list(self._block_by_hash)

    def coldest(self, count: int) -> list[int]:
        """Blocks to evict first."""
        return self._policy.coldest(count)

    def is_idle(self, block: int) -> bool:
        """Whether nobody refers to this sealed block."""
        return self._references[block] == 0

    def lease(self, count: int) -> list[int]:
        """Takes free blocks, to be written by one owner. The caller has made sure that there are enough."""
        assert count <= len(self._free)
        cut = len(self._free) - count
        blocks = self._free[cut:]
        del self._free[cut:]
        for block in blocks:
            self._states[block] = _LEASED
        return blocks

    def free(self, blocks: list[int]) -> None:
        """Takes leased blocks back, whose writer has stopped."""
        for block in blocks:
            assert self._states[block] == _LEASED
            self._states[block] = _FREE
        self._free += blocks

    def seal(self, block: int, block_hash: bytes | None) -> None:
        """Makes a leased block immutable, with one reference.

        `block_hash` is None for a duplicate of a block that is findable already: it serves its sequence's block table
        and is free when that lets go of it.
        """
        assert self._states[block] == _LEASED
        self._states[block] = _SEALED
        self._references[block] = 1
        if block_hash is not None:
            self._hash_by_block[block] = block_hash
            self._block_by_hash[block_hash] = block
            self._policy.enter(block, block_hash)
            self._followers[self._last_sealed] = block
            self._last_sealed = block

    def adopt(self, blocks: Iterable[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
        """Takes free blocks that hold this content from before, as cache; returns them.

        Passed over: blocks that are not free or do not exist, and hashes that are here already.
        """
        adopted: list[tuple[int, bytes]] = []
        for block, block_hash in blocks:
            if 0 <= block < self.capacity and self._states[block] == _FREE and block_hash not in self._block_by_hash:
                self._states[block] = _LEASED
                self.seal(block, block_hash)
                self.unreference([block])
                adopted.append((block, block_hash))
        self._free = [block for block in self._free if self._states[block] == _FREE]
        return adopted

    def reference(self, block: int) -> None:
        """One more user of this sealed block, a sequence or the service itself: it is not evicted meanwhile."""
        self._references[block] += 1
        if self._hash_by_block[block] is not None:
            self._policy.use(block)

    def unreference(self, blocks: Sequence[int]) -> None:
        """One user fewer of these sealed blocks of one prefix, whose last block comes first."""
        references, hashes = self._references, self._hash_by_block
        idle: list[int] = []
        for block in blocks:
            references[block] -= 1
            if references[block] > 0:
                continue
            if hashes[block] is not None:
                idle.append(block)
            else:
                self._states[block] = _FREE
                self._free.append(block)
        self._policy.admit(idle)

    def drop(self, block: int) -> bytes:
        """Frees a sealed block that nobody refers to; returns the hash under which it was found."""
        block_hash = self._hash_by_block[block]
        assert block_hash is not None
        assert self._references[block] == 0
        self._policy.drop(block, block_hash)
        self._hash_by_block[block] = None
        del self._block_by_hash[block_hash]
        self._states[block] = _FREE
        self._free.append(block)
        self._drops_since_rebuild += 1
        if self._drops_since_rebuild > self.capacity // _REBUILD_SHARE:
            # A dictionary whose keys change grows to three slots an entry. A new one has just enough.
            self._block_by_hash = dict(self._block_by_hash)
            self._drops_since_rebuild = 0
        return block_hash
