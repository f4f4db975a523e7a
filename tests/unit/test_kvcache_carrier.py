"""The order in which effects are carried out: whatever the moment of a kill, what is noted is true."""

from collections.abc import Callable
from pathlib import Path

from forebay.kv.effects import BlockRecord, CopyBlock, Effects, WriteSlot
from forebay.kv.tier import Tier
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.checkpoint import Checkpoint, NotedBlock, read_checkpoint
from forebay.kvcache.mover import BlockMover

KEY, BLOCK_BYTES = b"key", 4
OLD, NEW = bytes(16), bytes([1]) * 16


class Memory:
    """A TierMemory of two blocks that this process cannot address; tells when something is copied into it."""

    def __init__(self, on_store: Callable[[], None]) -> None:
        self.blocks = [bytearray(BLOCK_BYTES), bytearray(BLOCK_BYTES)]
        self.on_store = on_store

    def block(self, index: int, length_bytes: int) -> None:
        return

    def load(self, index: int, target: memoryview) -> None:
        target[:] = self.blocks[index]

    def store(self, index: int, source: memoryview) -> None:
        self.on_store()
        self.blocks[index][:] = source

    def finish(self) -> None:
        """Nothing is under way."""


class Disk:
    """A DiskTraffic that only tells when it is started."""

    def __init__(self, on_start: Callable[[], None]) -> None:
        self.on_start = on_start

    def start(self, writes: tuple[WriteSlot, ...], reads: object) -> None:
        if writes:
            self.on_start()


def test_what_is_not_true_any_more_is_struck_before_the_copy_and_what_is_true_noted_after_it(tmp_path: Path) -> None:
    path = tmp_path / "index"
    seen: list[tuple[str, list[bytes]]] = []

    def noted(moment: str) -> None:
        seen.append((moment, [one.block_hash for one in read_checkpoint(path, KEY)]))

    memory = {tier: Memory(lambda: noted("copied")) for tier in (Tier.DEVICE, Tier.HOST)}
    checkpoint = Checkpoint(path, KEY, 2)
    checkpoint.note(NotedBlock(0, OLD, bytes(16)))
    carrier = Carrier(BlockMover(memory, BLOCK_BYTES), {Tier.HOST: checkpoint})
    carrier.digests.put((Tier.DEVICE, 1), bytes(16))
    carrier.disk = Disk(lambda: noted("written"))  # type: ignore[assignment]
    carrier.carry_out(
        Effects(
            copies=(CopyBlock(Tier.DEVICE, 1, Tier.HOST, 0),),
            writes=(WriteSlot(NEW, 0, 0),),
            records=(BlockRecord(Tier.HOST, 0, None), BlockRecord(Tier.HOST, 0, NEW)),
        )
    )
    checkpoint.close()
    assert seen == [("copied", []), ("written", [NEW])]
