"""Tensor number formats of GGUF: their numbers on disk and the size of their blocks. Cannot decode them."""

from enum import IntEnum


class GgufTensorType(IntEnum):
    """The ggml tensor types that Forebay reads; the value is the number on disk."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q8_0 = 8
    Q4_K = 12
    Q6_K = 14
    BF16 = 30

    @property
    def block_elements(self) -> int:
        """Numbers in one block."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return _BLOCKS[self][1]


_BLOCKS: dict[GgufTensorType, tuple[int, int]] = {
    GgufTensorType.F32: (1, 4),
    GgufTensorType.F16: (1, 2),
    GgufTensorType.BF16: (1, 2),
    GgufTensorType.Q4_0: (32, 2 + 16),
    GgufTensorType.Q4_1: (32, 2 + 2 + 16),
    GgufTensorType.Q8_0: (32, 2 + 32),
    GgufTensorType.Q4_K: (256, 2 + 2 + 12 + 128),
    GgufTensorType.Q6_K: (256, 128 + 64 + 16 + 2),
}
