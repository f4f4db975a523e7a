"""The KV memory of a node, seen as tensors. Knows layouts and strides; not who may write which block."""

from typing import NamedTuple

import torch
from torch import Tensor

from forebay.errors import LayoutMismatchError
from forebay.host.gpu_memory import OpenedGpuMemory
from forebay.kv.layout import SCALE_BYTES, AxisOrder, KvDtype, KvLayout

_TORCH_DTYPES = {
    KvDtype.FLOAT32: torch.float32,
    KvDtype.BFLOAT16: torch.bfloat16,
    KvDtype.FLOAT16: torch.float16,
    KvDtype.FLOAT8_E4M3: torch.float8_e4m3fn,
    KvDtype.INT8: torch.int8,
}


class KvPart(NamedTuple):
    """What one rank reads and writes, sharing the buffer's memory: writing to it is writing KV."""

    blocks: Tensor  # [blocks, layers, 2 (key, value), kv_heads of the rank, block_tokens, head_dim]
    scales: Tensor | None  # [blocks, layers, 2, kv_heads, block_tokens], float32; None where the layout has none


class KvArena:
    """Blocks of one layout inside a buffer that somebody else owns: one part for each rank."""

    def __init__(
        self,
        buffer: "memoryview | bytearray | OpenedGpuMemory",
        layout: KvLayout,
        block_count: int,
        block_stride_bytes: int | None = None,
    ) -> None:
        """Wraps a writable buffer; nothing is copied.

        Args:
            buffer: shared memory, a GPU's, or plain bytes in tests; must outlive the arena.
            block_stride_bytes: from one block to the next; None: the size of a block.

        Raises:
            LayoutMismatchError: the buffer or the stride does not fit the layout.
        """
        stride_bytes = layout.block_bytes if block_stride_bytes is None else block_stride_bytes
        _check(_size_of(buffer), layout, block_count, stride_bytes)
        memory = _bytes_of(buffer)
        self.layout = layout
        self.block_count = block_count
        used_bytes = (block_count - 1) * stride_bytes + layout.block_bytes
        self.parts = tuple(
            _part(memory[:used_bytes], part, offset, block_count, stride_bytes)
            for part, offset in zip(layout.parts, layout.part_offsets_bytes, strict=True)
        )


def _size_of(buffer: "memoryview | bytearray | OpenedGpuMemory") -> int:
    return buffer.size_bytes if isinstance(buffer, OpenedGpuMemory) else memoryview(buffer).nbytes


def _bytes_of(buffer: "memoryview | bytearray | OpenedGpuMemory") -> Tensor:
    if isinstance(buffer, OpenedGpuMemory):
        # The type has the name that the tensor library gives both families.
        return torch.as_tensor(buffer, device=f"cuda:{buffer.device.partition(':')[2]}")
    return torch.frombuffer(buffer, dtype=torch.uint8)


def _part(memory: Tensor, layout: KvLayout, offset_bytes: int, block_count: int, stride_bytes: int) -> KvPart:
    rows = (layout.layers, 2, layout.kv_heads, layout.block_tokens)
    dtype, size_bytes = _TORCH_DTYPES[layout.dtype], layout.dtype.size_bytes
    shape = (block_count, *rows, layout.head_dim)
    blocks = _blocks(memory.view(dtype), shape, stride_bytes // size_bytes, offset_bytes // size_bytes)
    if layout.scale_offset_bytes is None:
        return KvPart(blocks, None)
    offset = (offset_bytes + layout.scale_offset_bytes) // SCALE_BYTES
    numbers = memory.view(torch.float32)
    return KvPart(blocks, _blocks(numbers, (block_count, *rows), stride_bytes // SCALE_BYTES, offset))


def _blocks(numbers: Tensor, shape: tuple[int, ...], stride: int, offset: int) -> Tensor:
    """Contiguous within each block, `stride` numbers from one block to the next."""
    inside = torch.empty(shape[1:], device="meta").stride()
    return numbers.as_strided(shape, (stride, *inside), offset)


def _check(buffer_bytes: int, layout: KvLayout, block_count: int, stride_bytes: int) -> None:
    if layout.order is not AxisOrder.LAYER_KV_HEAD_TOKEN:
        raise LayoutMismatchError(f"the torch engine cannot use axis order {layout.order.value}", field="layout.order")
    number_bytes = layout.dtype.size_bytes if layout.dtype is not KvDtype.INT8 else SCALE_BYTES
    if stride_bytes < layout.block_bytes or stride_bytes % number_bytes:
        raise LayoutMismatchError(
            f"a stride of {stride_bytes} bytes does not fit blocks of {layout.block_bytes} bytes",
            field="block_stride_bytes",
        )
    if block_count < 1 or buffer_bytes < (block_count - 1) * stride_bytes + layout.block_bytes:
        raise LayoutMismatchError(
            f"{buffer_bytes} bytes do not hold {block_count} blocks of {stride_bytes} bytes", field="size_bytes"
        )
