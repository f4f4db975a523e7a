"""A tier's memory with its checkpoint, and what a killed service of the same node left of both; of a GPU's, nothing.

What was left is copied into new memory, never used in place: workers of the killed service may still have the old
memory mapped, and must not write into blocks of this one. What does not match its digest is lost. A service that is
killed while it copies leaves nothing.
"""

import logging
import mmap
import os
from contextlib import suppress
from pathlib import Path

from xxhash import xxh3_128_digest

from forebay.errors import StartError
from forebay.host.file_lock import try_lock, unlock
from forebay.host.gpu_runtime import GpuError, GpuRuntime, gpu_device
from forebay.host.shared_memory import index_name, segment_name, segment_path
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena
from forebay.kvcache.checkpoint import Checkpoint, NotedBlock, read_checkpoint
from forebay.kvcache.gpu_arena import GpuArena

_log = logging.getLogger(__name__)


class MemoryTier:
    """`arena`, `checkpoint`, and `recovered`: blocks that hold what a killed service had sealed."""

    def __init__(self, node_id: str, tier: Tier, size_bytes: int, block_bytes: int, key: bytes) -> None:
        """Makes the memory, and takes over what was left there under the same key.

        Errors: StartError when another live service has the memory, or it is short.
        """
        name = segment_name(node_id, tier.value)
        path, index_path = segment_path(name), segment_path(index_name(name))
        old, noted = _take_left_behind(path, index_path, key)
        try:
            try:
                self.arena = Arena(node_id, tier, size_bytes, block_bytes)
            except StartError as error:
                if old is None:
                    raise
                _log.warning("%d KV blocks of the %s tier are lost: %s", len(noted), tier.value, error.message)
                old.close()
                old, noted = None, []
                self.arena = _arena_in_place_of_old(node_id, tier, size_bytes, block_bytes)
            try:
                self.recovered = [] if old is None else _copied(old, self.arena, noted, block_bytes)
                self.checkpoint = Checkpoint(index_path, key, self.arena.block_count)
            except BaseException:
                self.arena.close()
                raise
        finally:
            if old is not None:
                old.close()
        if self.recovered:
            _log.info("%d sealed KV blocks of the %s tier recovered", len(self.recovered), tier.value)
        if len(self.recovered) < len(noted):
            _log.warning("%d KV blocks of the %s tier are lost", len(noted) - len(self.recovered), tier.value)

    def close(self) -> None:
        """Leaves nothing behind."""
        self.checkpoint.close()
        self.arena.close()


class GpuTier:
    """As MemoryTier, on a GPU, whose memory ends with the service: there is no checkpoint, and nothing to recover."""

    def __init__(self, runtime: GpuRuntime, tier: Tier, size_bytes: int, block_bytes: int) -> None:
        """Makes the memory. Errors: StartError."""
        self.arena = GpuArena(runtime, tier, size_bytes, block_bytes)
        self.checkpoint = None
        self.recovered: list[tuple[int, bytes]] = []

    def close(self) -> None:
        """Leaves nothing behind."""
        self.arena.close()


def runtime_of(device: str) -> GpuRuntime | None:
    """The runtime of the device that KV is kept on; None: "cpu". Errors: StartError when it is not here."""
    if device == "cpu":
        return None
    try:
        return GpuRuntime(gpu_device(device))
    except GpuError as error:
        raise StartError(f"--device {device}: {error}", field="device") from error


def _take_left_behind(path: Path, index_path: Path, key: bytes) -> tuple[mmap.mmap | None, list[NotedBlock]]:
    """Memory of a service that is gone, and what it holds; None: there is none, or a service that lives has it.

    Its checkpoint is removed. New memory takes the old one's name before anything is copied into it, and what is noted
    of the old must not be believed of the new, should this process be killed in between.
    """
    with suppress(OSError, ValueError):
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if try_lock(file):
                noted = read_checkpoint(index_path, key)
                index_path.unlink(missing_ok=True)
                old = mmap.mmap(file, 0, prot=mmap.PROT_READ)
                unlock(file)  # for `Arena`, which looks for itself; the mapping keeps the file open
                return old, noted
        finally:
            os.close(file)
    return None, []


def _arena_in_place_of_old(node_id: str, tier: Tier, size_bytes: int, block_bytes: int) -> Arena:
    """As Arena. The old memory still takes room while a worker has it mapped, which may be reading it in a step."""
    try:
        return Arena(node_id, tier, size_bytes, block_bytes)
    except StartError as error:
        raise StartError(f"{error.message}; or end the workers, which still have what a killed service left") from error


def _copied(old: mmap.mmap, arena: Arena, noted: list[NotedBlock], block_bytes: int) -> list[tuple[int, bytes]]:
    """Index and hash of blocks, which keep their places. Lost: those beyond either memory's end, and damaged ones."""
    stride, copied = arena.block_stride_bytes, []
    with memoryview(old) as source:
        for one in noted:
            start = one.index * stride
            if start + stride <= min(len(old), arena.size_bytes):
                arena.view[start : start + stride] = source[start : start + stride]
                if xxh3_128_digest(arena.block(one.index, block_bytes)) == one.digest:
                    copied.append((one.index, one.block_hash))
    return copied
