"""What one pull keeps from eviction at the sending node, and how it waits for blocks that are not sealed yet.

Knows blocks and sequences; nothing of credit, frames or connections.
"""

import asyncio
from collections.abc import Sequence

from forebay.errors import RETRY_AFTER_S, BlockNotSealedError, ForebayError, UnknownBlockError, WorkerLostError
from forebay.kv.block_transport import HeldBlock, SealedBlocks, SequenceState


class PullReferences:
    """References to the blocks of one pull, taken in order, from `first_block_index` on."""

    def __init__(
        self, blocks: SealedBlocks, block_hashes: Sequence[bytes], first_block_index: int, sequence_id: str | None
    ) -> None:
        """Takes all that are sealed now, so that none of them is evicted while others are on their way."""
        self._blocks = blocks
        self._hashes = block_hashes
        self._sequence_id = sequence_id
        self._held: dict[int, HeldBlock] = {}
        self._next_index = first_block_index
        while self._next_index < len(block_hashes) and self._take() is not None:
            pass

    def __getitem__(self, block_index: int) -> HeldBlock:
        """A block that is held."""
        return self._held[block_index]

    async def wait_for(self, block_index: int, wait_s: float) -> HeldBlock:
        """The block, once it is sealed; to be asked for in order.

        Errors: UnknownBlockError: it is not here and will not be; WorkerLostError: who computed it died;
        BlockNotSealedError: not in so many seconds.
        """
        if block_index in self._held:
            return self._held[block_index]
        if self._sequence_id is None:
            raise self._missing(block_index)
        has_changed = asyncio.Event()
        unfollow = self._blocks.follow(self._sequence_id, has_changed.set)
        try:
            async with asyncio.timeout(wait_s):
                while (block := self._take()) is None:
                    if self._blocks.state_of(self._sequence_id) is not SequenceState.SEALING:
                        raise self._missing(block_index)
                    has_changed.clear()
                    await has_changed.wait()
        except TimeoutError:
            raise BlockNotSealedError(
                f"block {block_index} was not sealed within {wait_s:g} s",
                retry_after_s=RETRY_AFTER_S,
                block_index=str(block_index),
            ) from None
        finally:
            unfollow()
        return block

    def release(self) -> None:
        """Gives all references back."""
        for block in self._held.values():
            self._blocks.release(block)
        self._held.clear()

    def _take(self) -> HeldBlock | None:
        block = self._blocks.hold(self._hashes[self._next_index])
        if block is not None:
            self._held[self._next_index] = block
            self._next_index += 1
        return block

    def _missing(self, block_index: int) -> ForebayError:
        named = str(block_index)
        if self._sequence_id is None:
            return UnknownBlockError(f"block {block_index} is not held here", block_index=named)
        if self._blocks.state_of(self._sequence_id) is SequenceState.LOST:
            return WorkerLostError(f"the worker died before block {block_index} was sealed", block_index=named)
        return UnknownBlockError(f"the sequence ended before block {block_index} was sealed", block_index=named)
