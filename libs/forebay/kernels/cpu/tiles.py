"""Weight matrices in the tiles that the native kernels read (`native/linear.h`). Knows numbers, not files or models.

Shape suffixes: N outputs, K inputs, T tiles of 16 outputs, G groups of 32 inputs. Padding is zeros.
"""

from enum import IntEnum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from forebay.models.gguf_types import GgufTensorType

TILE_OUTPUTS = 16
GROUP_INPUTS = 32
ALIGNMENT_BYTES = 64

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Number = TypeVar("Number", bound=np.generic)


class TileFormat(IntEnum):
    """How the numbers of a tile are kept; the value is the library's."""

    F32 = 0
    BF16 = 1
    Q4_0 = 2
    Q4_1 = 3
    Q8_0 = 4


OF_BLOCKS = {
    GgufTensorType.Q4_0: TileFormat.Q4_0,
    GgufTensorType.Q4_1: TileFormat.Q4_1,
    GgufTensorType.Q8_0: TileFormat.Q8_0,
}
"""GGUF's block formats that are packed as they are, without loss."""

_SCALES = {TileFormat.Q4_0: 1, TileFormat.Q4_1: 2, TileFormat.Q8_0: 1}  # float16 numbers per block


def tile_bytes(tile_format: TileFormat, input_count: int) -> int:
    """Bytes of one tile, padding included."""
    per_group = {
        TileFormat.F32: 2048,
        TileFormat.BF16: 1024,
        TileFormat.Q4_0: 256 + 32,
        TileFormat.Q4_1: 256 + 64,
        TileFormat.Q8_0: 512 + 32,
    }[tile_format]
    return _padded(_padded(input_count, GROUP_INPUTS) // GROUP_INPUTS * per_group, ALIGNMENT_BYTES)


def pack_blocks(blocks_NGB: Bytes, tile_format: TileFormat) -> Bytes:
    """GGUF blocks of Q4_0, Q4_1 or Q8_0 as tiles: uint8 [T, tile_bytes]. Every number is kept bit for bit."""
    blocks = _pad_outputs(blocks_NGB)
    groups, scale_bytes = blocks.shape[1], 2 * _SCALES[tile_format]
    scales = np.ascontiguousarray(blocks[..., :scale_bytes]).view(np.uint16)
    words = np.ascontiguousarray(blocks[..., scale_bytes:]).view(np.uint32)
    if tile_format is TileFormat.Q8_0:
        words = words ^ np.uint32(0x80808080)  # int8 to the same number plus 128
    by_tile = [
        part.reshape(-1, TILE_OUTPUTS, groups, part.shape[-1]).transpose(0, 2, 3, 1).reshape(len(blocks) // 16, -1)
        for part in (words, scales)
    ]
    return _pad_tiles(np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in by_tile], axis=1))


def pack_dense(numbers_NK: Floats, tile_format: TileFormat) -> Bytes:
    """Floats as tiles of F32, BF16 (rounded to nearest even) or Q8_0 (one scale per 32): uint8 [T, tile_bytes]."""
    if tile_format is TileFormat.Q8_0:
        return pack_blocks(quantize_int8(numbers_NK), tile_format)
    numbers = _pad_outputs(_pad_inputs(numbers_NK))
    # Two bf16 of one output lie side by side in a word.
    words = numbers if tile_format is TileFormat.F32 else round_to_bfloat16(numbers).view(np.uint32)
    tiles = words.reshape(-1, TILE_OUTPUTS, words.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(tiles).view(np.uint8).reshape(len(tiles), -1)


def quantize_int8(numbers_NK: Floats) -> Bytes:
    """Floats as blocks of Q8_0: uint8 [N, G, 34]. The largest magnitude of a group becomes 127."""
    groups = _pad_inputs(numbers_NK).reshape(len(numbers_NK), -1, GROUP_INPUTS)
    scales = (np.abs(groups).max(-1, keepdims=True) / np.float32(127)).astype(np.float16)
    divisors = np.where(scales == 0, np.float32(1), scales.astype(np.float32))
    quants = np.clip(np.rint(groups / divisors), -127, 127).astype(np.int8)
    return np.concatenate([scales.view(np.uint8), quants.view(np.uint8)], axis=2)


def round_to_bfloat16(numbers: Floats) -> NDArray[np.uint16]:
    """Upper halves of float32, rounded to nearest, ties to even. Finite numbers only; same shape, contiguous."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype(np.uint16)


def scales_of(blocks_NGB: Bytes, tile_format: TileFormat) -> NDArray[np.float16]:
    """Scales (and minima) of GGUF blocks, to see whether they are finite."""
    return np.ascontiguousarray(blocks_NGB[..., : 2 * _SCALES[tile_format]]).view(np.float16)


def _padded(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _pad_outputs(numbers: NDArray[Number]) -> NDArray[Number]:
    missing = -len(numbers) % TILE_OUTPUTS
    return numbers if not missing else np.pad(numbers, [(0, missing), *[(0, 0)] * (numbers.ndim - 1)])


def _pad_inputs(numbers_NK: Floats) -> Floats:
    missing = -numbers_NK.shape[1] % GROUP_INPUTS
    return numbers_NK if not missing else np.pad(numbers_NK, [(0, 0), (0, missing)])


def _pad_tiles(tiles: Bytes) -> Bytes:
    missing = -tiles.shape[1] % ALIGNMENT_BYTES
    return tiles if not missing else np.pad(tiles, [(0, 0), (0, missing)])
