"""Carries out what the pure core decides about bytes: copies, checkpoint records, reads and writes of the disk.

In the order that makes a kill at any point harmless: what is not true any more is struck from the checkpoint, bytes are
copied, what has become true is noted, and the disk begins.
"""

from collections.abc import Mapping

from forebay.kv.effects import Effects
from forebay.kv.tier import Tier
from forebay.kvcache.checkpoint import Checkpoint
from forebay.kvcache.digests import BlockDigests
from forebay.kvcache.disk_traffic import DiskTraffic
from forebay.kvcache.mover import BlockMover


class Carrier:
    """All that moves bytes in a node. disk: None where there is no DISK tier; digests: of what lies in memory."""

    def __init__(self, mover: BlockMover, checkpoints: Mapping[Tier, Checkpoint]) -> None:
        self._mover = mover
        self._checkpoints = checkpoints
        self.digests = BlockDigests(mover.read)
        self.disk: DiskTraffic | None = None

    @property
    def copied_bytes(self) -> int:
        """KV bytes copied between tiers of memory since start."""
        return self._mover.copied_bytes

    def memory_of(self, tier: Tier, index: int) -> memoryview:
        """The bytes of a block of a tier of memory, to be read."""
        return self._mover.read(tier, index)

    def open(self, tier: Tier, index: int) -> memoryview:
        """Where the bytes of a block of a tier of memory are to be written, until `written`."""
        return self._mover.open(tier, index)

    def written(self, tier: Tier, index: int, opened: memoryview) -> None:
        """All bytes of an opened block are there."""
        self._mover.written(tier, index, opened)

    def carry_out(self, effects: Effects) -> None:
        """When it returns, copies and records are done, and the disk's part has begun."""
        self.digests.forget(effects.records)
        for record in effects.records:
            if record.tier in self._checkpoints:
                self._checkpoints[record.tier].note(record.index, None)
        self._mover.move(effects.copies)
        last = {(record.tier, record.index): record.block_hash for record in effects.records}
        for (tier, index), block_hash in last.items():
            if block_hash is not None and tier in self._checkpoints:
                self._checkpoints[tier].note(index, block_hash)
        if self.disk is not None:
            self.disk.start(effects.writes, effects.reads)
