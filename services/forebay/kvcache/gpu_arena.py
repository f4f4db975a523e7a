"""The KV memory of a tier on a GPU: one allocation, cut into blocks of equal stride, shared with workers by handle.

Its runtime frees it when the service ends, however it ends, so blocks sealed there are lost with it; HOST and DISK
copies are not. Workers that still have it open keep it until they close it, and write into nothing but it: a new
service allocates anew, and its handle is another.
"""

import ctypes

from forebay.errors import StartError
from forebay.host.gpu_runtime import GpuError, GpuRuntime
from forebay.kv.segment import MemorySegment
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena, blocks_of, stride_of


class GpuArena:
    """A TierMemory. Block i begins at i * block_stride_bytes of the allocation."""

    def __init__(self, runtime: GpuRuntime, tier: Tier, size_bytes: int, block_bytes: int) -> None:
        """Allocates as many whole blocks as `size_bytes` has room for. Errors: StartError."""
        self.tier = tier
        self.block_stride_bytes = stride_of(block_bytes)
        self.block_count = blocks_of(tier, size_bytes, self.block_stride_bytes)
        self.size_bytes = self.block_count * self.block_stride_bytes
        self._runtime = runtime
        try:
            self._address = runtime.allocate(self.size_bytes)
            self._handle = runtime.share(self._address)
            self._stream = runtime.new_stream()
        except GpuError as error:
            raise StartError(f"no {self.size_bytes} bytes of KV memory: {error}; lower --{tier.value}-bytes") from error

    @property
    def segment(self) -> MemorySegment:
        """What a worker must know to open it."""
        return MemorySegment(
            self.tier,
            "",
            self.size_bytes,
            self.block_stride_bytes,
            self.block_count,
            str(self._runtime.device),
            self._handle,
        )

    def block(self, index: int, length_bytes: int) -> None:
        """As TierMemory.block: this process cannot address it."""
        return

    def load(self, index: int, target: memoryview) -> None:
        """As TierMemory.load."""
        self._runtime.copy(_address_of(target), self._address_of(index), target.nbytes, self._stream)

    def store(self, index: int, source: memoryview) -> None:
        """As TierMemory.store."""
        self._runtime.copy(self._address_of(index), _address_of(source), source.nbytes, self._stream)

    def finish(self) -> None:
        """As TierMemory.finish."""
        self._runtime.wait(self._stream)

    def close(self) -> None:
        """Frees it; workers that have it open keep theirs."""
        self._runtime.end_stream(self._stream)
        self._runtime.free(self._address)

    def _address_of(self, index: int) -> int:
        return self._address + index * self.block_stride_bytes


class PinnedArena:
    """Keeps an arena of host memory pinned while the block runs, so that copies to and from a GPU need no stop."""

    def __init__(self, runtime: GpuRuntime, arena: Arena) -> None:
        self._runtime = runtime
        self._address = _address_of(arena.view)
        try:
            runtime.pin(self._address, arena.size_bytes)
        except GpuError as error:
            raise StartError(f"the host tier cannot be pinned: {error}; lower --host-bytes") from error

    def close(self) -> None:
        """To be called before the arena is closed."""
        self._runtime.unpin(self._address)


def _address_of(memory: memoryview) -> int:
    if memory.readonly:
        raise ValueError("memory that is copied to or from a GPU must be writable, for its address to be known")
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
