"""The DEVICE blocks that one transfer fills, and those of its prefix that are here already: kept until it is over.

Knows hashes by their place in the prefix. Not where bytes come from, nor how they are laid out there.
"""

from collections.abc import Sequence
from typing import Protocol

from forebay.kv.block_traffic import Held
from forebay.kv.tier import Tier
from forebay.kvcache.node_blocks import FilledBlock, NodeBlocks


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
        self._opened: dict[int, memoryview] = {}
        self._held: list[Held] = []
        self._filled: dict[int, FilledBlock] = {}
        self.has_room = True
        for index, block_hash in enumerate(prefix_hashes):
            self.has_room = self._keep(index, block_hash)
            if not self.has_room:
                break

    @property
    def open_count(self) -> int:
        """Blocks still to be filled here."""
        return len(self._filled)

    def is_open(self, index: int) -> bool:
        """Whether this block is still to be filled here."""
        return index in self._filled

    def memory(self, index: int) -> memoryview:
        """Where an open block's bytes go."""
        opened = self._opened.get(index)
        if opened is None:
            opened = self._opened[index] = self._memory.open(Tier.DEVICE, self._filled[index].block)
        return opened

    def finish(self, index: int) -> None:
        """An open block's bytes are there; they are not written again."""
        filled = self._filled.pop(index)
        opened = self._opened.pop(index, None)
        if opened is not None:
            self._memory.written(Tier.DEVICE, filled.block, opened)
        self._blocks.finish_fill(filled, is_good=True)

    def end_filling(self) -> None:
        """What is still open will not be filled, and is free again. Idempotent."""
        self._opened.clear()
        while self._filled:
            self._blocks.finish_fill(self._filled.popitem()[1], is_good=False)

    def close(self) -> None:
        """Ends filling, and keeps nothing any more. Idempotent."""
        self.end_filling()
        held, self._held = self._held, []
        self._blocks.let_go(held)

    def _keep(self, index: int, block_hash: bytes) -> bool:
        held = self._blocks.hold(block_hash)
        if held is not None:
            self._held.append(held)
            return True
        if self._blocks.is_on_its_way(block_hash):
            return True
        filled = self._blocks.open_fill(block_hash)
        if filled is None:
            return False
        self._filled[index] = filled
        return True
