"""The DEVICE blocks that one transfer fills, and those of its prefix that are here already: kept until it is over.

Knows hashes by their place in the prefix. Not where bytes come from, nor how they are laid out there.
"""

from collections.abc import Sequence
from typing import Protocol

from forebay.kv.block_traffic import Held
from forebay.kv.tier import Tier
from forebay.kvcache.node_blocks import NodeBlocks, OpenBlock


class BlockMemory(Protocol):
    """Where blocks are written."""

    def open(self, tier: Tier, index: int) -> memoryview:
        """Where a block's bytes go, until `written`."""
        ...

    def written(self, tier: Tier, index: int, opened: memoryview) -> None:
        """All of them are there."""
        ...


class Landing:
    """Open from its making to `close`, after which nobody writes. Each block that was opened is finished once."""

    def __init__(self, blocks: NodeBlocks, memory: BlockMemory, prefix_hashes: Sequence[bytes]) -> None:
        """Opens as many blocks of the prefix as there is room for, the first ones first."""
        self._blocks = blocks
        self._memory = memory
        self._bytes_of: dict[int, memoryview] = {}
        self._held: dict[int, Held] = {}
        self._open: dict[int, OpenBlock] = {}
        self.has_room = True
        for index, block_hash in enumerate(prefix_hashes):
            self.has_room = self._keep(index, block_hash)
            if not self.has_room:
                break

    @property
    def open_count(self) -> int:
        """Blocks still to be filled here."""
        return len(self._open)

    def is_open(self, index: int) -> bool:
        """Whether this block is still to be filled here."""
        return index in self._open

    def memory(self, index: int) -> memoryview:
        """Where an open block's bytes go."""
        opened = self._bytes_of.get(index)
        if opened is None:
            opened = self._bytes_of[index] = self._memory.open(Tier.DEVICE, self._open[index].index)
        return opened

    def finish(self, index: int) -> None:
        """An open block's bytes are there; they are not written again."""
        block = self._open.pop(index)
        opened = self._bytes_of.pop(index, None)
        if opened is not None:
            self._memory.written(Tier.DEVICE, block.index, opened)
        self._blocks.finish_fill(block, is_good=True)
        self._hold(index, block.block_hash)

    def end_filling(self) -> None:
        """What is still open will not be filled, and is free again. Idempotent."""
        self._bytes_of.clear()
        while self._open:
            self._blocks.finish_fill(self._open.popitem()[1], is_good=False)

    def close(self) -> None:
        """Ends filling, and keeps nothing any more. Idempotent."""
        self.end_filling()
        held, self._held = self._held, {}
        self._blocks.let_go(held[index] for index in sorted(held))

    def _keep(self, index: int, block_hash: bytes) -> bool:
        if self._hold(index, block_hash):
            return True
        if self._blocks.is_on_its_way(block_hash):
            return True
        block = self._blocks.open_fill(block_hash)
        if block is None:
            return False
        self._open[index] = block
        return True

    def _hold(self, index: int, block_hash: bytes) -> bool:
        """Keeps a block of the prefix until `close`; False: it is not in memory."""
        held = self._blocks.hold(block_hash)
        if held is not None:
            self._held[index] = held
        return held is not None
