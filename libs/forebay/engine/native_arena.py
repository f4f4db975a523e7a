"""The KV memory of a node, as the native kernels address it. Knows layouts and strides; not who may write a block."""

import numpy as np

from forebay.errors import LayoutMismatchError
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout

SEGMENT_TOKENS = 256  # of native/attention.h: a block must fit into a segment without rest
_TOKENS_MULTIPLE = 16
_MAX_HEAD_DIM = 256


class NativeArena:
    """Blocks of the paired axis order inside a buffer that somebody else owns. The kernels write to it in place."""

    def __init__(
        self,
        buffer: memoryview | bytearray,
        layout: KvLayout,
        block_count: int,
        block_stride_bytes: int | None = None,
    ) -> None:
        """Wraps a writable buffer; nothing is copied.

        Args:
            buffer: shared memory, or plain bytes in tests; kept alive by the arena.
            block_stride_bytes: from one block to the next; None: the size of a block.

        Raises:
            LayoutMismatchError: the buffer, the stride or the layout does not suit the native kernels.
        """
        self.layout = layout
        self.block_count = block_count
        self.block_stride_bytes = layout.block_bytes if block_stride_bytes is None else block_stride_bytes
        check_layout(layout)
        self._bytes = np.frombuffer(buffer, np.uint8)
        needed_bytes = (block_count - 1) * self.block_stride_bytes + layout.block_bytes
        if block_count < 1 or self.block_stride_bytes < layout.block_bytes or self._bytes.nbytes < needed_bytes:
            raise LayoutMismatchError(
                f"{self._bytes.nbytes} bytes do not hold {block_count} blocks of {self.block_stride_bytes} bytes",
                field="size_bytes",
            )
        if self.block_stride_bytes % layout.dtype.size_bytes or not self._bytes.flags.writeable:
            raise LayoutMismatchError("blocks are not aligned to their numbers, or not writable", field="buffer")

    @property
    def address(self) -> int:
        """Where block 0 begins in this process."""
        return int(self._bytes.ctypes.data)

    def fill(self, block: int, byte: int) -> None:
        """Overwrites a whole block with one byte; 0xFF makes every number a NaN."""
        start = block * self.block_stride_bytes
        self._bytes[start : start + self.layout.block_bytes] = byte


def check_layout(layout: KvLayout) -> None:
    """Raises LayoutMismatchError when the native kernels cannot work on such blocks."""
    if layout.order is not AxisOrder.LAYER_KV_HEAD_PAIRED:
        raise LayoutMismatchError(f"the native engine cannot use axis order {layout.order.value}", field="layout.order")
    if layout.dtype not in (KvDtype.BFLOAT16, KvDtype.FLOAT32):
        raise LayoutMismatchError(f"the native engine cannot use KV of {layout.dtype.value}", field="layout.dtype")
    if layout.block_tokens % _TOKENS_MULTIPLE or SEGMENT_TOKENS % layout.block_tokens:
        raise LayoutMismatchError(
            f"blocks of {layout.block_tokens} tokens; the native engine supports 16, 32, 64, 128 and 256",
            field="layout.block_tokens",
        )
    if layout.head_dim % _TOKENS_MULTIPLE or layout.head_dim > _MAX_HEAD_DIM:
        raise LayoutMismatchError(
            f"heads of {layout.head_dim} numbers; the native engine supports multiples of 16 up to {_MAX_HEAD_DIM}",
            field="layout.head_dim",
        )
