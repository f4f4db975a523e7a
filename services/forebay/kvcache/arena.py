"""The KV memory of one tier: a POSIX shared-memory segment, cut into blocks of equal stride.

Knows files, locks and sizes; not what blocks hold nor who uses them. The segment is locked (flock) while its service
lives, so that a second service of the same node refuses to start, and one left behind by a killed service is replaced.
Replaced, not reused: its workers may still have it mapped, and must never write into blocks of the new service.
"""

import mmap
import os
from pathlib import Path

from forebay.errors import StartError
from forebay.host.file_lock import try_lock
from forebay.host.shared_memory import FOLDER, segment_name, segment_path
from forebay.kv.segment import MemorySegment
from forebay.kv.tier import Tier

ALIGNMENT_BYTES = 64
"""Blocks begin at multiples of a cache line, which is also the widest vector load."""


class Arena:
    """A TierMemory: `block_count` blocks of one tier. Block i begins at i * block_stride_bytes."""

    def __init__(self, node_id: str, tier: Tier, size_bytes: int, block_bytes: int) -> None:
        """Creates the segment with as many whole blocks as `size_bytes` has room for.

        All memory is taken at once: a full /dev/shm is an error here instead of a SIGBUS in a worker later.
        Errors: StartError when another live service has the segment, or memory is short.
        """
        self.tier = tier
        self.block_stride_bytes = stride_of(block_bytes)
        self.block_count = blocks_of(tier, size_bytes, self.block_stride_bytes)
        self.size_bytes = self.block_count * self.block_stride_bytes
        self.shm_name = segment_name(node_id, tier.value)
        self._path = segment_path(self.shm_name)
        self._file = _create_locked(self._path, node_id)
        try:
            self._allocate()
            self._memory = mmap.mmap(self._file, self.size_bytes)
        except BaseException:
            self._path.unlink()
            os.close(self._file)
            raise
        self.view = memoryview(self._memory)

    @property
    def segment(self) -> MemorySegment:
        """What a worker must know to map it."""
        return MemorySegment(self.tier, self.shm_name, self.size_bytes, self.block_stride_bytes, self.block_count)

    def block(self, index: int, length_bytes: int) -> memoryview:
        """As TierMemory.block: always in place."""
        start = index * self.block_stride_bytes
        return self.view[start : start + length_bytes]

    def load(self, index: int, target: memoryview) -> None:
        """As TierMemory.load; done when it returns."""
        target[:] = self.block(index, target.nbytes)

    def store(self, index: int, source: memoryview) -> None:
        """As TierMemory.store; done when it returns."""
        self.block(index, source.nbytes)[:] = source

    def finish(self) -> None:
        """As TierMemory.finish."""

    def close(self) -> None:
        """Unlinks and unmaps the segment; workers that have it mapped keep their mapping."""
        self._path.unlink(missing_ok=True)
        self.view.release()
        self._memory.close()
        os.close(self._file)

    def _allocate(self) -> None:
        try:
            os.posix_fallocate(self._file, 0, self.size_bytes)
        except OSError as error:
            os.ftruncate(self._file, 0)
            room = os.statvfs(FOLDER)
            raise StartError(
                f"{FOLDER} has {room.f_bavail * room.f_frsize} bytes free, {self.size_bytes} are wanted"
                f" ({error.strerror}); enlarge it or lower {_flag(self.tier)}"
            ) from error


def stride_of(block_bytes: int) -> int:
    """Bytes from one block to the next."""
    return -(-block_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def blocks_of(tier: Tier, size_bytes: int, stride_bytes: int) -> int:
    """Whole blocks in so much memory. Errors: StartError when there is none."""
    if size_bytes < stride_bytes:
        raise StartError(f"{_flag(tier)} {size_bytes} has no room for one block of {stride_bytes} bytes; raise it")
    return size_bytes // stride_bytes


def _create_locked(path: Path, node_id: str) -> int:
    """A new file at `path`, locked by this process; what a dead service left there is unlinked."""
    try:
        while True:
            try:
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                _unlink_left_behind(path, node_id)
                continue
            # Between creation and lock another starter may take the file for left behind; then it is not ours.
            if try_lock(file) and _is_at(path, file):
                return file
            os.close(file)
    except OSError as error:
        raise StartError(f"cannot create {path}: {error.strerror}; shared memory is needed for KV") from error


def _unlink_left_behind(path: Path, node_id: str) -> None:
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not try_lock(file):
            raise StartError(f"another KV-cache service of node {node_id!r} is running; choose another --node-id")
        if _is_at(path, file):
            path.unlink()
    finally:
        os.close(file)


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _flag(tier: Tier) -> str:
    return f"--{tier.value}-bytes"
