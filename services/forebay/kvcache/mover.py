"""Copies KV blocks between tiers, and counts: the only place in a node that copies KV bytes. Knows no hashes."""

from collections.abc import Iterable, Mapping

from forebay.kv.effects import CopyBlock
from forebay.kv.tier import Tier


class BlockMover:
    """Moves whole blocks of `stride_bytes` within and between the tiers' memory."""

    def __init__(self, memory: Mapping[Tier, memoryview], stride_bytes: int, block_bytes: int) -> None:
        self._memory = memory
        self._stride_bytes = stride_bytes
        self.block_bytes = block_bytes
        self.copied_bytes = 0

    def move(self, copies: Iterable[CopyBlock]) -> None:
        """Carries copies out in order; they are done when this returns."""
        for copy in copies:
            self.block(copy.to_tier, copy.to_index)[:] = self.block(copy.from_tier, copy.from_index)
            self.copied_bytes += self.block_bytes

    def block(self, tier: Tier, index: int) -> memoryview:
        """A block's bytes."""
        start = index * self._stride_bytes
        return self._memory[tier][start : start + self.block_bytes]
