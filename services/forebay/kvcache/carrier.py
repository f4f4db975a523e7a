"""Carries out what the pure core decides about bytes: copies, checkpoint records, reads and writes of the disk.

In the order that makes a kill at any point harmless: what is not true any more is struck from the checkpoint, bytes are
copied, what has become true is noted (of new blocks a moment later, by `notes`), and the disk begins.
"""

from collections.abc import Mapping

from forebay.kv.effects import CopyBlock, Effects
from forebay.kv.tier import Tier
from forebay.kvcache.checkpoint import Checkpoint
from forebay.kvcache.digests import BlockDigests, Place
from forebay.kvcache.disk_traffic import DiskTraffic
from forebay.kvcache.late_notes import LateNotes
from forebay.kvcache.mover import BlockMover


class Carrier:
    """All that moves bytes in a node. disk: None where there is no DISK tier; digests: of what lies in memory.

    `notes.run` is to run beside it.
    """

    def __init__(self, mover: BlockMover, checkpoints: Mapping[Tier, Checkpoint]) -> None:
        self._mover = mover
        self.digests = BlockDigests(mover.read)
        self.notes = LateNotes(mover.read, self.digests, checkpoints)
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

    def carry_out(self, effects: Effects) -> tuple[Place, ...]:
        """When it returns, copies are done, no record is untrue, and the disk's part has begun.

        Returns where blocks came to lie that are not what was sealed: nobody may use them.
        """
        damaged: list[Place] = []

        def look_at(copy: CopyBlock) -> None:
            if not self.digests.copied(copy):
                damaged.append((copy.to_tier, copy.to_index))

        for record in effects.records:
            self.notes.strike((record.tier, record.index))
        self._mover.move(effects.copies, look_at)
        self.digests.settle(effects.copies, effects.records)
        last = {(record.tier, record.index): record.block_hash for record in effects.records}
        for place, block_hash in last.items():
            if block_hash is not None and place not in damaged:
                self.notes.note(place, block_hash)
        if self.disk is not None:
            self.disk.start(effects.writes, effects.reads)
        return tuple(damaged)
