"""A tier's memory with its checkpoint, and what a killed service of the same node left of both; of a GPU's, nothing.

What was left is copied into new memory, never used in place: workers of the killed service may still have the old
memory mapped, and must not write into blocks of this one. A service that is killed while it copies leaves nothing.
"""

import logging
import mmap
import os
from contextlib import suppress
from pathlib import Path

from forebay.errors import StartError
from forebay.host.file_lock import try_lock, unlock
from forebay.host.gpu_runtime import GpuError, GpuRuntime, gpu_device
from forebay.host.shared_memory import segment_name, segment_path
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena
from forebay.kvcache.checkpoint import Checkpoint, read_checkpoint
from forebay.kvcache.gpu_arena import GpuArena

_log = logging.getLogger(__name__)

Noted = list[tuple[int, bytes]]
"""Index and hash of blocks."""


class MemoryTier:
    """`arena`, `checkpoint`, and `recovered`: blocks that hold what a killed service had sealed."""

    def __init__(self, node_id: str, tier: Tier, size_bytes: int, block_bytes: int, key: bytes) -> None:
        """Makes the memory, and takes over what was left there under the same key.

        Errors: StartError when another live service has the memory, or it is short.
        """
        path = segment_path(segment_name(node_id, tier.value))
        index_path = path.with_name(f"{path.name}-index")
        old, noted = _take_left_behind(path, index_path, key)
        try:
            self.arena = Arena(node_id, tier, size_bytes, block_bytes)
            try:
                self.recovered = [] if old is None else _copied(old, self.arena, noted)
                self.checkpoint = Checkpoint(index_path, key, self.arena.block_count)
            except BaseException:
                self.arena.close()
                raise
        finally:
            if old is not None:
                old.close()
        if self.recovered:
            _log.info("%d sealed KV blocks of the %s tier recovered", len(self.recovered), tier.value)

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
        self.recovered: Noted = []

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


def _take_left_behind(path: Path, index_path: Path, key: bytes) -> tuple[mmap.mmap | None, Noted]:
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


def _copied(old: mmap.mmap, arena: Arena, noted: Noted) -> Noted:
    """Blocks keep their places; those beyond the end of either memory are lost."""
    stride = arena.block_stride_bytes
    kept = [one for one in noted if (one[0] + 1) * stride <= min(len(old), arena.size_bytes)]
    with memoryview(old) as source:
        for index, _ in kept:
            start = index * stride
            arena.view[start : start + stride] = source[start : start + stride]
    return kept
