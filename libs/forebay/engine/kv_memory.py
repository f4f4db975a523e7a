"""The KV memory that an engine is given: bytes that somebody else owns, and how they are cut into blocks."""

from dataclasses import dataclass

from forebay.host.gpu_memory import OpenedGpuMemory
from forebay.kv.layout import KvLayout


@dataclass(frozen=True, slots=True)
class KvMemory:
    """Blocks of one layout in a writable buffer.

    buffer: shared memory, a GPU's, or plain bytes in tests and benchmarks; kept alive by the engine made over it.
    block_stride_bytes: from one block to the next; None: the size of a block.
    """

    buffer: "memoryview | bytearray | OpenedGpuMemory"
    layout: KvLayout
    block_count: int
    block_stride_bytes: int | None = None


def private_memory(layout: KvLayout, block_count: int) -> KvMemory:
    """Fresh memory of this process for so many blocks."""
    return KvMemory(bytearray(block_count * layout.block_bytes), layout, block_count)
