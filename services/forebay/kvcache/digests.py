"""Digests of sealed blocks in memory, each computed once, when another node first asks for the block.

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

    def forget(self, records: Iterable[BlockRecord]) -> None:
        """These blocks hold something else now."""
        for record in records:
            self._digests.pop((record.tier, record.index), None)
