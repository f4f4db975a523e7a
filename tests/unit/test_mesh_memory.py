"""What a mesh occupies: tiers in shared memory, and no page counted twice."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.host.process_identity import ProcessIdentity
from forebay.host.shared_memory import segment_name, segment_path
from forebay.mesh.memory import ProcessMemory, TierMemory, occupied_bytes, process_memory, tier_memory

NODE_ID = f"memorytest-{os.getpid()}"
SIZE_BYTES = 64 * mmap.PAGESIZE
TOUCHED_BYTES = 16 * mmap.PAGESIZE


@pytest.fixture
def device() -> Iterator[Path]:
    """A segment of which all memory is taken, as the KV-cache service takes it."""
    path = segment_path(segment_name(NODE_ID, "device"))
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, SIZE_BYTES)
    yield path
    path.unlink()


def test_tiers_are_told_whether_or_not_anyone_has_touched_them(device: Path) -> None:
    assert tier_memory(NODE_ID) == [TierMemory("device", str(device), SIZE_BYTES)]
    assert occupied_bytes(NODE_ID, []) == SIZE_BYTES
    assert tier_memory("no-such-node") == []


def test_what_a_process_has_touched_counts_once(device: Path) -> None:
    with device.open("r+b") as file, mmap.mmap(file.fileno(), SIZE_BYTES) as mapped:
        mapped[:TOUCHED_BYTES] = b"x" * TOUCHED_BYTES
        mine = process_memory(ProcessIdentity.of(os.getpid()), NODE_ID)
    assert mine.pss_segment_bytes == TOUCHED_BYTES
    assert mine.pss_bytes is not None
    assert occupied_bytes(NODE_ID, [mine]) == mine.pss_bytes + SIZE_BYTES - TOUCHED_BYTES


def test_nothing_is_known_of_a_process_that_is_gone() -> None:
    gone = ProcessIdentity(os.getpid(), start_ticks=1)
    assert process_memory(gone, NODE_ID) == ProcessMemory()
    assert occupied_bytes(NODE_ID, [ProcessMemory()]) == 0
