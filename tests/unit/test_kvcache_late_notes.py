"""Blocks are noted with the digest of what was sealed there, soon, and never with that of what came later."""

import asyncio
import threading
from pathlib import Path

import pytest
from xxhash import xxh3_128_digest

from forebay.kv.tier import Tier
from forebay.kvcache import late_notes
from forebay.kvcache.checkpoint import Checkpoint, NotedBlock, read_checkpoint
from forebay.kvcache.digests import BlockDigests
from forebay.kvcache.late_notes import LateNotes
from forebay.testing.waiting import until

KEY, BLOCK_COUNT = b"key", 40
OLD, NEW = bytes(16), bytes([1]) * 16


class Scene:
    """A tier of blocks of one byte each, its index."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "index"
        self.memory = bytearray(range(BLOCK_COUNT))
        self.digests = BlockDigests(lambda tier, index: memoryview(self.memory)[index : index + 1])
        self.checkpoint = Checkpoint(self.path, KEY, BLOCK_COUNT)
        self.notes = LateNotes(
            lambda tier, index: memoryview(self.memory)[index : index + 1], self.digests, {Tier.HOST: self.checkpoint}
        )

    def noted(self) -> list[NotedBlock]:
        """As a later service would find them."""
        return read_checkpoint(self.path, KEY)


async def test_all_are_noted_with_their_digests_and_those_of_other_tiers_never(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.notes.note((Tier.DEVICE, 3), NEW)
    for index in range(BLOCK_COUNT):
        scene.notes.note((Tier.HOST, index), bytes([index]) * 16)
    assert (len(scene.notes), scene.noted()) == (BLOCK_COUNT, [])
    task = asyncio.create_task(scene.notes.run())
    await until(lambda: len(scene.notes) == 0)
    assert scene.noted() == [
        NotedBlock(index, bytes([index]) * 16, xxh3_128_digest(bytes([index]))) for index in range(BLOCK_COUNT)
    ]
    assert scene.digests.known((Tier.HOST, 7)) == xxh3_128_digest(b"\7")
    scene.notes.note((Tier.HOST, 7), NEW)
    assert scene.noted()[7].block_hash == NEW, "at once, since its digest is known"
    task.cancel()


@pytest.mark.parametrize("later", [None, OLD, NEW])
async def test_what_changed_while_it_was_read_is_not_noted_with_the_old_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: bytes | None
) -> None:
    scene = Scene(tmp_path)
    has_begun, may_end = threading.Event(), threading.Event()
    digest_of = late_notes.xxh3_128_digest

    def slowly(block: memoryview) -> bytes:
        digest = digest_of(block)
        has_begun.set()
        may_end.wait(20)
        return digest

    monkeypatch.setattr(late_notes, "xxh3_128_digest", slowly)
    task = asyncio.create_task(scene.notes.run())
    scene.notes.note((Tier.HOST, 0), OLD)
    await until(has_begun.is_set)
    scene.notes.strike((Tier.HOST, 0))
    scene.memory[0] = 99
    if later is not None:
        scene.notes.note((Tier.HOST, 0), later)
    may_end.set()
    scene.notes.note((Tier.HOST, 1), NEW)  # of a later batch, since its thread is busy
    await until(lambda: len(scene.notes) == 0)
    expected = [] if later is None else [NotedBlock(0, later, digest_of(bytes([99])))]
    assert scene.noted() == [*expected, NotedBlock(1, NEW, digest_of(b"\1"))]
    task.cancel()
