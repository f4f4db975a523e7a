"""This node's sealed blocks as other nodes pull them: held in memory while they are sent, each with its digest."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from forebay.kv.block_traffic import Held
from forebay.kv.block_transport import HeldBlock, SequenceState
from forebay.kv.layout import KvLayout
from forebay.kv.lease import Right
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.node import KvNode

_STATES = {
    None: SequenceState.ENDED,
    Right.OFFERED: SequenceState.ENDED,
    Right.OWNED: SequenceState.SEALING,
    # Its owner has lost the right to seal, though it may live.
    Right.FENCED: SequenceState.LOST,
    Right.ORPHANED: SequenceState.LOST,
}


class NodeSealedBlocks:
    """A SealedBlocks. disk_wait_s: most seconds that a pull waits for blocks that lie on disk only."""

    def __init__(self, node: KvNode, carrier: Carrier, layout: KvLayout, disk_wait_s: float) -> None:
        self.layout = layout
        self._node = node
        self._carrier = carrier
        self._disk_wait_s = disk_wait_s
        self._held: dict[HeldBlock, Held] = {}

    @asynccontextmanager
    async def fetched(self, block_hashes: Sequence[bytes]) -> AsyncIterator[None]:
        """As SealedBlocks.fetched."""
        self._node.refuse_if_draining()
        if not self._node.blocks.needs_fetch(block_hashes):
            yield
            return
        async with self._node.blocks.fetched(block_hashes, self._disk_wait_s):
            yield

    def hold(self, block_hash: bytes) -> HeldBlock | None:
        """As SealedBlocks.hold."""
        held = self._node.blocks.hold(block_hash)
        if held is None:
            return None
        memory = self._carrier.memory_of(held.tier, held.block)
        block = HeldBlock(memory.toreadonly(), partial(self._carrier.digests.of, held.tier, held.block))
        self._held[block] = held
        return block

    def release(self, block: HeldBlock) -> None:
        """As SealedBlocks.release."""
        self._node.blocks.let_go([self._held.pop(block)])

    def state_of(self, sequence_id: str) -> SequenceState:
        """As SealedBlocks.state_of."""
        return _STATES[self._node.right_to(sequence_id)]

    def follow(self, sequence_id: str, on_change: Callable[[], None]) -> Callable[[], None]:
        """As SealedBlocks.follow."""
        return self._node.followers.follow(sequence_id, on_change)
