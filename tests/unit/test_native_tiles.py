"""Tiles hold the model file's numbers: what the kernels unpack from them is what the file's own decoder says."""

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.kernels.cpu.library import LinearStruct, load_library
from forebay.kernels.cpu.tiles import (
    OF_BLOCKS,
    TileFormat,
    pack_blocks,
    pack_dense,
    quantize_int8,
    round_to_bfloat16,
    tile_bytes,
)
from forebay.models.gguf_dequantize import dequantize
from forebay.models.gguf_types import GgufTensorType

BLOCK_TYPES = sorted(OF_BLOCKS)


def unpacked(tiles, tile_format, outputs, inputs):
    """All rows of a packed matrix, by the library."""
    linear = LinearStruct(tiles=tiles.ctypes.data, format=tile_format, outputs=outputs, inputs=inputs)
    rows = np.zeros((outputs, -(-inputs // 32) * 32), np.float32)
    for output in range(outputs):
        address = ctypes.c_void_p(rows[output].ctypes.data)
        load_library().functions.forebay_unpack_row(ctypes.byref(linear), output, address)
    return rows


def random_blocks(kind, outputs, groups, seed):
    """Blocks of random bits, but for finite scales."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (outputs, groups, kind.block_bytes), np.uint8)
    scale_count = 2 if kind is GgufTensorType.Q4_1 else 1
    scales = random.normal(size=(outputs, groups, scale_count)).astype(np.float16)
    scales[random.random(scales.shape) < 0.1] = np.float16(3e-7)  # subnormal
    blocks[..., : 2 * scale_count] = scales.view(np.uint8)
    return blocks


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(BLOCK_TYPES),
    outputs=st.integers(1, 50),
    groups=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_blocks_are_packed_without_loss(kind, outputs, groups, seed):
    blocks = random_blocks(kind, outputs, groups, seed)

    tiles = pack_blocks(blocks, OF_BLOCKS[kind])

    assert tiles.shape == (-(-outputs // 16), tile_bytes(OF_BLOCKS[kind], 32 * groups))
    expected = dequantize(blocks.reshape(-1), kind, (outputs, 32 * groups))
    rows = unpacked(tiles, OF_BLOCKS[kind], outputs, 32 * groups)
    if kind is GgufTensorType.Q4_1:  # a fused multiplication and addition may round once instead of twice
        np.testing.assert_allclose(rows, expected, rtol=1e-6, atol=1e-6)
    else:
        np.testing.assert_array_equal(rows, expected)


@settings(max_examples=40, deadline=None)
@given(outputs=st.integers(1, 40), inputs=st.integers(1, 100), seed=st.integers(0, 1000))
def test_floats_are_packed_as_they_are_or_rounded_to_bfloat16(outputs, inputs, seed):
    numbers = np.random.default_rng(seed).normal(size=(outputs, inputs)).astype(np.float32)

    exact = unpacked(pack_dense(numbers, TileFormat.F32), TileFormat.F32, outputs, inputs)
    rounded = unpacked(pack_dense(numbers, TileFormat.BF16), TileFormat.BF16, outputs, inputs)

    np.testing.assert_array_equal(exact[:, :inputs], numbers)
    assert not exact[:, inputs:].any()
    np.testing.assert_allclose(rounded[:, :inputs], numbers, rtol=2**-8)
    assert not rounded[:, inputs:].any()


@settings(max_examples=40, deadline=None)
@given(outputs=st.integers(1, 20), inputs=st.integers(1, 70), scale=st.sampled_from([0.0, 1e-7, 1.0, 1000.0]))
def test_int8_is_off_by_at_most_half_a_step(outputs, inputs, scale):
    numbers = (scale * np.random.default_rng(inputs).normal(size=(outputs, inputs))).astype(np.float32)

    rows = unpacked(pack_dense(numbers, TileFormat.Q8_0), TileFormat.Q8_0, outputs, inputs)[:, :inputs]

    # Half a step of 1/127 of the largest, the scale's own rounding to float16, and its smallest number.
    bound = np.abs(numbers).max(initial=0) * (0.5 / 127 + 2**-10) + 2**-24 * 64
    assert np.abs(rows - numbers).max(initial=0) <= bound


def test_rounding_to_bfloat16_goes_to_even_on_a_tie():
    words = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0xBF808000], np.uint32)

    assert round_to_bfloat16(words.view(np.float32)).tolist() == [0x3F80, 0x3F82, 0x3F81, 0xBF80]


def test_a_group_of_zeros_has_scale_zero():
    assert not quantize_int8(np.zeros((2, 32), np.float32)).any()


@pytest.mark.parametrize(
    ("tile_format", "bits"), [(TileFormat.Q4_1, 5), (TileFormat.Q4_0, 4.5), (TileFormat.Q8_0, 8.5)]
)
def test_tiles_take_no_more_than_the_blocks(tile_format, bits):
    assert tile_bytes(tile_format, 4096) * 8 == bits * 16 * 4096
