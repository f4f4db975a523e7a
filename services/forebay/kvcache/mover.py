"""Copies KV blocks between tiers, and counts: the only place in a node that copies KV bytes. Knows no hashes."""

from collections.abc import Iterable, Mapping

from forebay.kv.effects import CopyBlock
from forebay.kv.tier import Tier
from forebay.kvcache.tier_memory import TierMemory


class BlockMover:
    """Moves whole blocks of `block_bytes` within and between the tiers' memory."""

    def __init__(self, memory: Mapping[Tier, TierMemory], block_bytes: int) -> None:
        self._memory = memory
        self.block_bytes = block_bytes
        self.copied_bytes = 0

    def move(self, copies: Iterable[CopyBlock]) -> None:
        """Carries copies out in order; they are done when this returns."""
        for copy in copies:
            self._begin(copy)
            self.copied_bytes += self.block_bytes
        self._finish()

    def read(self, tier: Tier, index: int) -> memoryview:
        """A block's bytes, in place where this process can address them, else as they are now."""
        memory = self._memory[tier]
        block = memory.block(index, self.block_bytes)
        if block is None:
            block = memoryview(bytearray(self.block_bytes))
            memory.load(index, block)
            memory.finish()
        return block

    def open(self, tier: Tier, index: int) -> memoryview:
        """Where a block's bytes are to be written; `written` puts them there where that is another place."""
        return self._memory[tier].block(index, self.block_bytes) or memoryview(bytearray(self.block_bytes))

    def written(self, tier: Tier, index: int, opened: memoryview) -> None:
        """All bytes of an opened block are there."""
        memory = self._memory[tier]
        if memory.block(index, self.block_bytes) is None:
            memory.store(index, opened)
            memory.finish()

    def _begin(self, copy: CopyBlock) -> None:
        source, target = self._memory[copy.from_tier], self._memory[copy.to_tier]
        from_block = source.block(copy.from_index, self.block_bytes)
        to_block = target.block(copy.to_index, self.block_bytes)
        if from_block is not None and to_block is not None:
            self._finish()  # what is under way from or to a device may touch these
            to_block[:] = from_block
        elif to_block is not None:
            source.load(copy.from_index, to_block)
        elif from_block is not None:
            target.store(copy.to_index, from_block)
        else:
            passing = self.read(copy.from_tier, copy.from_index)
            target.store(copy.to_index, passing)
            target.finish()  # while what it passes through lives

    def _finish(self) -> None:
        for memory in self._memory.values():
            memory.finish()
