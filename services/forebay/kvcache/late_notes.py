"""Computes digests of blocks that were sealed a moment ago, and then notes the blocks in their checkpoints.

In a thread, behind the operation that sealed them: reading a block takes as long as a tenth of a call, and nobody who
waits for the call needs its digest. A service that is killed before has lost what was not noted yet.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Final

from xxhash import xxh3_128_digest

from forebay.kv.tier import Tier
from forebay.kvcache.checkpoint import Checkpoint, NotedBlock
from forebay.kvcache.digests import BlockDigests, Place

_BATCH: Final = 16
"""Blocks that the thread takes at once: few, so that it ends soon when the service does."""


class _Wish:
    """That one block be noted. Compared by identity: the same hash may have been sealed there before."""

    def __init__(self, block_hash: bytes) -> None:
        self.block_hash = block_hash


class LateNotes:
    """`checkpoints`: of the tiers whose blocks are noted."""

    def __init__(
        self,
        memory_of: Callable[[Tier, int], memoryview],
        digests: BlockDigests,
        checkpoints: Mapping[Tier, Checkpoint],
    ) -> None:
        self._memory_of = memory_of
        self._digests = digests
        self._checkpoints = checkpoints
        self._wishes: dict[Place, _Wish] = {}
        self._has_wishes = asyncio.Event()

    def __len__(self) -> int:
        return len(self._wishes)

    def strike(self, place: Place) -> None:
        """The block holds nothing from now on that may be found."""
        self._wishes.pop(place, None)
        if place[0] in self._checkpoints:
            self._checkpoints[place[0]].strike(place[1])

    def note(self, place: Place, block_hash: bytes) -> None:
        """The block holds this from now on: noted at once where its digest is known, else as soon as it is."""
        if place[0] not in self._checkpoints:
            return
        digest = self._digests.known(place)
        if digest is None:
            self._wishes[place] = _Wish(block_hash)
            self._has_wishes.set()
        else:
            self._note(place, block_hash, digest)

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "kv-digests", _give_way) as thread:
            while True:
                await self._has_wishes.wait()
                batch = list(islice(self._wishes.items(), _BATCH))
                blocks = [self._memory_of(*place) for place, _ in batch]
                digests = await loop.run_in_executor(thread, _digests, blocks)
                for (place, wish), digest in zip(batch, digests, strict=True):
                    self._fulfil(place, wish, digest)
                if not self._wishes:
                    self._has_wishes.clear()

    def _fulfil(self, place: Place, wish: _Wish, digest: bytes) -> None:
        if self._wishes.get(place) is wish:  # else something else lies there, or came while it was read
            del self._wishes[place]
            self._digests.put(place, digest)
            self._note(place, wish.block_hash, digest)

    def _note(self, place: Place, block_hash: bytes, digest: bytes) -> None:
        tier, index = place
        self._checkpoints[tier].note(NotedBlock(index, block_hash, digest))


def _give_way() -> None:
    """Of this thread alone: whoever answers a call, or computes, has the core first."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def _digests(blocks: Sequence[memoryview]) -> list[bytes]:
    return [xxh3_128_digest(block) for block in blocks]
