"""Shared memory of a node: its size, its lock, and what becomes of it."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from forebay.errors import StartError
from forebay.kv.effects import CopyBlock
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena
from forebay.kvcache.mover import BlockMover

HOLD = (
    "import sys;from forebay.kvcache.arena import *;a=Arena(sys.argv[1],Tier.DEVICE,640,64);print(1,flush=True);input()"
)


@pytest.fixture
def node_id() -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex[:12]}"
    yield name
    assert list(Path("/dev/shm").glob(f"forebay-{name}-*")) == []


def test_segment_is_private_allocated_aligned_and_unlinked(node_id: str) -> None:
    with closing(Arena(node_id, Tier.HOST, 1000, 100)) as arena:
        assert arena.shm_name == f"/forebay-{node_id}-host"
        assert (arena.block_stride_bytes, arena.block_count, arena.size_bytes) == (128, 7, 896)
        stat = Path("/dev/shm", arena.shm_name[1:]).stat()
        assert (stat.st_mode & 0o777, stat.st_size) == (0o600, 896)
        assert stat.st_blocks * 512 >= 896, "taken, not promised"
        assert bytes(arena.view) == bytes(896)


def test_segment_of_a_live_service_is_respected_and_that_of_a_dead_one_replaced(node_id: str) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, node_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        path = Path(f"/dev/shm/forebay-{node_id}-device")
        with pytest.raises(StartError, match="--node-id"):
            Arena(node_id, Tier.DEVICE, 640, 64)
        holder.kill()
        holder.wait()
        with path.open("r+b") as mapped_by_an_old_worker, closing(Arena(node_id, Tier.DEVICE, 640, 64)) as arena:
            mapped_by_an_old_worker.write(b"late")
            mapped_by_an_old_worker.flush()
            assert bytes(arena.view) == bytes(640), "an old worker must not reach the new memory"


def test_short_memory_names_the_flag_and_what_is_there(node_id: str) -> None:
    with pytest.raises(StartError, match=r"/dev/shm has \d+ bytes free, \d+ are wanted .* lower --device-bytes"):
        Arena(node_id, Tier.DEVICE, 1 << 50, 1 << 20)


def test_no_room_for_one_block_names_the_flag(node_id: str) -> None:
    with pytest.raises(StartError, match="--host-bytes 100 has no room for one block of 128 bytes"):
        Arena(node_id, Tier.HOST, 100, 128)


def test_mover_copies_whole_blocks_in_order_and_counts(node_id: str) -> None:
    with (
        closing(Arena(node_id, Tier.DEVICE, 128, 3)) as device,
        closing(Arena(node_id, Tier.HOST, 128, 3)) as host,
    ):
        device.store(0, memoryview(b"aaa."))
        device.store(1, memoryview(b"bbb."))
        mover = BlockMover({Tier.DEVICE: device, Tier.HOST: host}, block_bytes=3)
        mover.move([CopyBlock(Tier.DEVICE, 1, Tier.HOST, 0), CopyBlock(Tier.DEVICE, 0, Tier.DEVICE, 1)])
        assert [bytes(device.block(index, 4)) for index in (0, 1)] == [b"aaa.", b"aaa."]
        assert (bytes(host.block(0, 4)), mover.copied_bytes) == (b"bbb\0", 6)
