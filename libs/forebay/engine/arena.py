"""The KV memory of a node, seen as a tensor. Knows layouts and strides; not who may write which block."""

import torch
from torch import Tensor

from forebay.errors import LayoutMismatchError
from forebay.kv.layout import AxisOrder, KvLayout


class KvArena:
    """Blocks of one layout inside a buffer that somebody else owns.

    `blocks` is [blocks, layers, 2 (key, value), kv_heads, block_tokens, head_dim] and shares the buffer's memory:
    writing to it is writing KV.
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
        dtype: torch.dtype = getattr(torch, layout.dtype.value)
        self.layout = layout
        self.block_count = block_count
        used_bytes = (block_count - 1) * stride_bytes + layout.block_bytes
        numbers = torch.frombuffer(buffer, dtype=dtype, count=used_bytes // layout.dtype.size_bytes)
        shape = (layout.layers, 2, layout.kv_heads, layout.block_tokens, layout.head_dim)
        inside = torch.empty(shape, device="meta").stride()
        stride = stride_bytes // layout.dtype.size_bytes
        self.blocks: Tensor = numbers.as_strided((block_count, *shape), (stride, *inside))


def _check(buffer_bytes: int, layout: KvLayout, block_count: int, stride_bytes: int) -> None:
    if layout.order is not AxisOrder.LAYER_KV_HEAD_TOKEN:
        raise LayoutMismatchError(f"the torch engine cannot use axis order {layout.order.value}", field="layout.order")
    if layout.dtype.value not in ("float32", "bfloat16"):
        raise LayoutMismatchError(f"the torch engine cannot use KV of {layout.dtype.value}", field="layout.dtype")
    if stride_bytes < layout.block_bytes or stride_bytes % layout.dtype.size_bytes:
        raise LayoutMismatchError(
            f"a stride of {stride_bytes} bytes does not fit blocks of {layout.block_bytes} bytes",
            field="block_stride_bytes",
        )
    if block_count < 1 or buffer_bytes < (block_count - 1) * stride_bytes + layout.block_bytes:
        raise LayoutMismatchError(
            f"{buffer_bytes} bytes do not hold {block_count} blocks of {stride_bytes} bytes", field="size_bytes"
        )
