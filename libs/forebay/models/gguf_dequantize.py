"""Decodes GGUF's packed number formats to float32, vectorised. Knows nothing of files.

Each format is the one that ggml defines: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
Shapes: N blocks; a decoder takes uint8 [N, block_bytes] and returns float32 [N, block_elements].
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from forebay.models.gguf_types import GgufTensorType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def dequantize(packed: Bytes, kind: GgufTensorType, shape: tuple[int, ...]) -> Floats:
    """The numbers of one tensor.

    Args:
        packed: uint8 [size_bytes], contiguous.
        kind: the format of `packed`.
        shape: row-major; its product is a multiple of the block size.

    Returns:
        float32 of `shape`, owned by the caller.
    """
    return _DECODERS[kind](packed.reshape(-1, kind.block_bytes)).reshape(shape)


def bfloat16_to_float32(words: NDArray[np.uint16]) -> Floats:
    """bfloat16 is the upper half of a float32. Any shape in, the same shape out."""
    return (words.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _halves(blocks: Bytes, start: int) -> Floats:
    """The float16 at byte `start` of each block, as float32 [N, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """uint8 [N, K] -> uint8 [N, 2K]: all low halves, then all high halves."""
    return np.concatenate([packed & np.uint8(0x0F), packed >> np.uint8(4)], axis=1)


def _f32(blocks: Bytes) -> Floats:
    return blocks.view(np.float32).copy()


def _f16(blocks: Bytes) -> Floats:
    return blocks.view(np.float16).astype(np.float32)


def _bf16(blocks: Bytes) -> Floats:
    return bfloat16_to_float32(blocks.view(np.uint16))


def _q4_0(blocks: Bytes) -> Floats:
    """scale f16 | 32 nibbles, offset by 8."""
    return _halves(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - np.float32(8))


def _q4_1(blocks: Bytes) -> Floats:
    """scale f16 | minimum f16 | 32 nibbles."""
    return _halves(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _halves(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    """scale f16 | 32 int8."""
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _q4_k(blocks: Bytes) -> Floats:
    """scale f16 | minimum f16 | 8 pairs of 6-bit (scale, minimum) in 12 bytes | 256 nibbles in 4 groups of 64."""
    packed = blocks[:, 4:16]
    low_scales, low_minima, high = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low_scales & 63, (high & 15) | (low_scales >> 6 << 4)], axis=1)
    minima = np.concatenate([low_minima & 63, (high >> 4) | (low_minima >> 6 << 4)], axis=1)
    quants = _nibbles(blocks[:, 16:].reshape(-1, 32)).reshape(-1, 8, 32).astype(np.float32)
    scales_N8 = _halves(blocks, 0) * scales.astype(np.float32)
    minima_N8 = _halves(blocks, 2) * minima.astype(np.float32)
    return (scales_N8[:, :, None] * quants - minima_N8[:, :, None]).reshape(-1, 256)


def _q6_k(blocks: Bytes) -> Floats:
    """256 low nibbles | 256 upper pairs of bits | 16 int8 scales | scale f16; numbers are offset by 32."""
    low = _nibbles(blocks[:, 0:128].reshape(-1, 64)).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)
    quants = (low | (high << np.uint8(4))).reshape(-1, 16, 16).astype(np.float32) - np.float32(32)
    scales = _halves(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return (scales[:, :, None] * quants).reshape(-1, 256)


_DECODERS: dict[GgufTensorType, Callable[[Bytes], Floats]] = {
    GgufTensorType.F32: _f32,
    GgufTensorType.F16: _f16,
    GgufTensorType.BF16: _bf16,
    GgufTensorType.Q4_0: _q4_0,
    GgufTensorType.Q4_1: _q4_1,
    GgufTensorType.Q8_0: _q8_0,
    GgufTensorType.Q4_K: _q4_k,
    GgufTensorType.Q6_K: _q6_k,
}
