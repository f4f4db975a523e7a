"""Digests of sealed blocks in memory, each computed once: when the block is noted, or another node asks for it.

Bounded by the blocks: a digest belongs to a place in memory, and goes when what lies there does.
"""

from collections.abc import Callable, Iterable

from xxhash import xxh3_128_digest

from forebay.kv.effects import BlockRecord
from forebay.kv.tier import Tier


class BlockDigests:
    """`memory_of`: the bytes of a block."""

    def __init__(self, memory_of: Callable[[Tier, int], memoryview]) -> None:
        self._memory_of = memory_of
        self._digests: dict[tuple[Tier, int], bytes] = {}

    def __len__(self) -> int:
        return len(self._digests)

    def of(self, tier: Tier, index: int) -> bytes:
        """The xxh3-128 of a sealed block, which is referenced meanwhile."""
        digest = self._digests.get((tier, index))
        if digest is None:
            digest = self._digests[tier, index] = xxh3_128_digest(self._memory_of(tier, index))
        return digest

    def is_whole(self, tier: Tier, index: int) -> bool:
        """Whether a sealed block still is what it was when its digest was computed, if it was."""
        known = self._digests.get((tier, index))
        return known is None or known == xxh3_128_digest(self._memory_of(tier, index))

    def forget(self, records: Iterable[BlockRecord]) -> None:
        """These blocks hold something else now."""
        for record in records:
            self._digests.pop((record.tier, record.index), None)
