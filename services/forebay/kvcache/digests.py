"""Digests of sealed blocks in memory, each computed once: soon after the block was sealed, or when it is asked for.

Bounded by the blocks: a digest belongs to a place in memory, goes along when the block is copied to another tier, and
ends when something else lies there.
"""

from collections.abc import Callable, Iterable

from xxhash import xxh3_128_digest

from forebay.kv.effects import BlockRecord, CopyBlock
from forebay.kv.tier import Tier

Place = tuple[Tier, int]
"""A block of a tier of memory, by its index."""


class BlockDigests:
    """`memory_of`: the bytes of a block."""

    def __init__(self, memory_of: Callable[[Tier, int], memoryview]) -> None:
        self._memory_of = memory_of
        self._digests: dict[Place, bytes] = {}

    def __len__(self) -> int:
        return len(self._digests)

    def known(self, place: Place) -> bytes | None:
        """The digest, if it has been computed."""
        return self._digests.get(place)

    def of(self, tier: Tier, index: int) -> bytes:
        """The xxh3-128 of a sealed block, which is referenced meanwhile."""
        digest = self._digests.get((tier, index))
        if digest is None:
            digest = self._digests[tier, index] = xxh3_128_digest(self._memory_of(tier, index))
        return digest

    def put(self, place: Place, digest: bytes) -> None:
        """What somebody else has computed of a block that is sealed."""
        self._digests[place] = digest

    def copied(self, copy: CopyBlock) -> bool:
        """A block has just been copied, and its digest goes with it, if there is one.

        Returns whether its bytes are those that were sealed. Looked at where it comes up from another tier, and now,
        when the copy has brought them near: before it they would be read from memory twice.
        """
        source, target = (copy.from_tier, copy.from_index), (copy.to_tier, copy.to_index)
        digest = self._digests.get(source)
        if digest is None:
            self._digests.pop(target, None)
            return True
        self._digests[target] = digest
        is_promotion = (copy.from_tier, copy.to_tier) == (Tier.HOST, Tier.DEVICE)
        return not is_promotion or digest == xxh3_128_digest(self._memory_of(*source))

    def settle(self, copies: Iterable[CopyBlock], records: Iterable[BlockRecord]) -> None:
        """After the copies of an operation: forgets what these places held before, and what is not sealed there."""
        targets = {(copy.to_tier, copy.to_index) for copy in copies}
        last = {(record.tier, record.index): record.block_hash for record in records}
        for place in targets | last.keys():
            if place not in targets or last.get(place) is None:
                self._digests.pop(place, None)
