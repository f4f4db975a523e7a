"""Shared memory of a node: its size, its lock, and what becomes of it."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from forebay.errors import StartError
from forebay.kv.attachments import WorkerProcess
from forebay.kv.effects import CopyBlock
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena
from forebay.kvcache.mover import BlockMover
from forebay.kvcache.process_watch import is_alive

HOLD = (
    "import sys;from forebay.kvcache.arena import *;a=Arena(sys.argv[1],Tier.DEVICE,640,64);print(1,flush=True);input()"
)

EXIT_THREAD = {"x86_64": 60, "aarch64": 93}  # number of the exit system call


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


def test_mover_copies_whole_blocks_in_order_and_counts() -> None:
    device, host = memoryview(bytearray(b"aaa.bbb.")), memoryview(bytearray(8))
    mover = BlockMover({Tier.DEVICE: device, Tier.HOST: host}, stride_bytes=4, block_bytes=3)
    mover.move([CopyBlock(Tier.DEVICE, 1, Tier.HOST, 0), CopyBlock(Tier.DEVICE, 0, Tier.DEVICE, 1)])
    assert (bytes(device), bytes(host), mover.copied_bytes) == (b"aaa.aaa.", b"bbb\0\0\0\0\0", 6)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def started(pid: int) -> WorkerProcess:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return WorkerProcess("w", pid, int(fields[19]))


def test_process_is_gone_when_killed_even_before_it_is_reaped(sleeper: subprocess.Popen[bytes]) -> None:
    process = started(sleeper.pid)
    assert is_alive(process)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{sleeper.pid}").exists()
    assert not is_alive(process)
    sleeper.wait()
    assert not is_alive(process)


def test_later_process_with_the_same_pid_does_not_count(sleeper: subprocess.Popen[bytes]) -> None:
    process = started(sleeper.pid)
    assert not is_alive(WorkerProcess("w", process.pid, process.start_ticks - 1))


def test_process_whose_first_thread_ended_may_still_write() -> None:
    # The main thread ends alone (SYS_exit), so that the process is a zombie by its state while a thread runs on.
    script = (
        "import ctypes,threading,sys\n"
        "threading.Thread(target=lambda: (print('up', flush=True), sys.stdin.read())).start()\n"
        f"ctypes.CDLL(None).syscall({EXIT_THREAD[os.uname().machine]}, 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        assert is_alive(started(process.pid))
        process.kill()


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
