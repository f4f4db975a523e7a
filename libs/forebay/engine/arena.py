"""The KV memory of a node, seen as a tensor. Knows layouts and strides; not who may write which block."""

import torch
from torch import Tensor

from forebay.errors import LayoutMismatchError
from forebay.kv.layout import SCALE_BYTES, AxisOrder, KvDtype, KvLayout

_TORCH_DTYPES = {
    KvDtype.FLOAT32: torch.float32,
    KvDtype.BFLOAT16: torch.bfloat16,
    KvDtype.FLOAT16: torch.float16,
    KvDtype.FLOAT8_E4M3: torch.float8_e4m3fn,
    KvDtype.INT8: torch.int8,
}


class KvArena:
    """Blocks of one layout inside a buffer that somebody else owns.

    `blocks` is [blocks, layers, 2 (key, value), kv_heads, block_tokens, head_dim] and shares the buffer's memory:
    writing to it is writing KV. So does `scales`, [blocks, layers, 2, kv_heads, block_tokens], float32; None where the
    layout has none.
    """

    def __init__(
        self,
        buffer: memoryview | bytearray,
        layout: KvLayout,
        block_count: int,
        block_stride_bytes: int | None = None,
    ) -> None:
        """Wraps a writable buffer; nothing is copied.

        Args:
            buffer: shared memory, or plain bytes in tests; must outlive the arena.
            block_stride_bytes: from one block to the next; None: the size of a block.

        Raises:
            LayoutMismatchError: the buffer or the stride does not fit the layout.
        """
        stride_bytes = layout.block_bytes if block_stride_bytes is None else block_stride_bytes
        _check(len(memoryview(buffer).cast("B")), layout, block_count, stride_bytes)
        self.layout = layout
        self.block_count = block_count
        rows = (layout.layers, 2, layout.kv_heads, layout.block_tokens)
        used_bytes = (block_count - 1) * stride_bytes + layout.block_bytes
        memory = torch.frombuffer(buffer, dtype=torch.uint8, count=used_bytes)
        shape, dtype = (block_count, *rows, layout.head_dim), _TORCH_DTYPES[layout.dtype]
        self.blocks: Tensor = _blocks(memory.view(dtype), shape, stride_bytes // layout.dtype.size_bytes)
        self.scales: Tensor | None = None
        if layout.scale_offset_bytes is not None:
            offset = layout.scale_offset_bytes // SCALE_BYTES
            numbers = memory.view(torch.float32)
            self.scales = _blocks(numbers, (block_count, *rows), stride_bytes // SCALE_BYTES, offset)


def _blocks(numbers: Tensor, shape: tuple[int, ...], stride: int, offset: int = 0) -> Tensor:
    """Contiguous within each block, `stride` numbers from one block to the next."""
    inside = torch.empty(shape[1:], device="meta").stride()
    return numbers.as_strided(shape, (stride, *inside), offset)


def _check(buffer_bytes: int, layout: KvLayout, block_count: int, stride_bytes: int) -> None:
    if layout.order is not AxisOrder.LAYER_KV_HEAD_TOKEN:
        raise LayoutMismatchError(f"the torch engine cannot use axis order {layout.order.value}", field="layout.order")
    number_bytes = layout.dtype.size_bytes if layout.scale_offset_bytes is None else SCALE_BYTES
    if stride_bytes < layout.block_bytes or stride_bytes % number_bytes:
        raise LayoutMismatchError(
            f"a stride of {stride_bytes} bytes does not fit blocks of {layout.block_bytes} bytes",
            field="block_stride_bytes",
        )
    if block_count < 1 or buffer_bytes < (block_count - 1) * stride_bytes + layout.block_bytes:
        raise LayoutMismatchError(
            f"{buffer_bytes} bytes do not hold {block_count} blocks of {stride_bytes} bytes", field="size_bytes"
        )
