"""Every native kernel against numpy, on every instruction set that this machine has, over drawn shapes."""

import ctypes

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.kernels.cpu.instruction_set import supported_sets
from forebay.kernels.cpu.library import LinearStruct, load_library
from forebay.kernels.cpu.peaks import Arithmetic, measure_peaks
from forebay.kernels.cpu.tiles import TileFormat, pack_blocks, pack_dense, quantize_int8, round_to_bfloat16
from forebay.models.gguf_dequantize import bfloat16_to_float32, dequantize
from forebay.models.gguf_types import GgufTensorType

drawn = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=[one.value for one in supported_sets()])
def functions(request):
    wanted = next(one for one in supported_sets() if one.value == request.param)
    return load_library(wanted).functions


def address(array):
    return ctypes.c_void_p(array.ctypes.data)


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def quantized_like_the_kernels(x, activation_bits):
    """Activations as integers and scales, as the kernels round them."""
    groups = x.reshape(len(x), -1, 32)
    most = np.abs(groups).max(-1, keepdims=True)
    largest = np.float32(127 if activation_bits == 8 else 127 * 256)
    scales = most / largest
    inverse = np.where(most > 0, largest / np.where(most > 0, most, 1), 0).astype(np.float32)
    return (np.rint(groups * inverse) * scales.astype(np.float64)).reshape(x.shape)


def random_weights(tile_format, outputs, inputs, seed):
    """Tiles, and the numbers in them as float64."""
    numbers = normal(outputs, inputs, seed=seed)
    if tile_format is TileFormat.F32:
        return pack_dense(numbers, tile_format), numbers.astype(np.float64)
    if tile_format is TileFormat.BF16:
        rounded = bfloat16_to_float32(round_to_bfloat16(numbers))
        return pack_dense(numbers, tile_format), rounded.astype(np.float64)
    kind = GgufTensorType[tile_format.name]
    if tile_format is TileFormat.Q8_0:
        blocks = quantize_int8(numbers)
    else:
        blocks = np.random.default_rng(seed).integers(0, 256, (outputs, inputs // 32, kind.block_bytes), np.uint8)
        scale_count = 2 if tile_format is TileFormat.Q4_1 else 1
        scales = normal(outputs, inputs // 32, scale_count, seed=seed).astype(np.float16)
        blocks[..., : 2 * scale_count] = scales.view(np.uint8)
    return pack_blocks(blocks, tile_format), dequantize(blocks.reshape(-1), kind, numbers.shape).astype(np.float64)


def linear(functions, tiles, tile_format, outputs, x, *, bias=None, activation_bits=16):
    struct = LinearStruct(
        tiles=tiles.ctypes.data,
        format=tile_format,
        outputs=outputs,
        inputs=x.shape[1],
        bias=None if bias is None else bias.ctypes.data,
        has_wide_inputs=activation_bits == 16,
    )
    y = np.full((len(x), -(-outputs // 16) * 16), np.nan, np.float32)
    strides = ctypes.c_int64(x.shape[1]), ctypes.c_int64(y.shape[1])
    functions.forebay_linear_rows(ctypes.byref(struct), address(x), len(x), strides[0], address(y), strides[1])
    return y[:, :outputs]


@drawn
@given(
    tile_format=st.sampled_from(TileFormat),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 70), st.integers(1, 6)),
    activation_bits=st.sampled_from([8, 16]),
    seed=st.integers(0, 100),
)
def test_a_linear_layer_is_a_matrix_product(functions, tile_format, shape, activation_bits, seed):
    rows, outputs, groups = shape
    x = normal(rows, 32 * groups, seed=seed)
    tiles, weights = random_weights(tile_format, outputs, 32 * groups, seed)

    y = linear(functions, tiles, tile_format, outputs, x, activation_bits=activation_bits)

    if tile_format is TileFormat.F32:
        seen = x.astype(np.float64)
    elif tile_format is TileFormat.BF16:
        seen = bfloat16_to_float32(round_to_bfloat16(x)).astype(np.float64)
    else:
        seen = quantized_like_the_kernels(x, activation_bits)
    bound = 2e-6 * (np.abs(seen) @ np.abs(weights).T) * groups**0.5 + 1e-6
    assert (np.abs(y - seen @ weights.T) <= bound).all()


@drawn
@given(
    tile_format=st.sampled_from(TileFormat),
    rows=st.integers(2, 40),
    outputs=st.integers(1, 40),
    groups=st.integers(1, 6),
    activation_bits=st.sampled_from([8, 16]),
)
def test_a_row_has_the_same_bits_in_any_company(functions, tile_format, rows, outputs, groups, activation_bits):
    x = normal(rows, 32 * groups, seed=rows)
    tiles, _ = random_weights(tile_format, outputs, 32 * groups, seed=1)

    together = linear(functions, tiles, tile_format, outputs, x, activation_bits=activation_bits)

    for row in range(rows):
        alone = linear(functions, tiles, tile_format, outputs, x[row : row + 1], activation_bits=activation_bits)
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.parametrize("tile_format", [TileFormat.F32, TileFormat.BF16])
def test_inputs_that_fill_no_whole_group_are_padded(functions, tile_format):
    x = normal(3, 37)
    weights = normal(20, 37, seed=1)

    y = linear(functions, pack_dense(weights, tile_format), tile_format, 20, x)

    tolerance = 1e-5 if tile_format is TileFormat.F32 else 0.15
    np.testing.assert_allclose(y, x @ weights.T, atol=tolerance)


def test_a_bias_is_added(functions):
    x, weights, bias = normal(3, 32), normal(16, 32, seed=1), normal(16, seed=2)
    tiles = pack_dense(weights, TileFormat.F32)

    without = linear(functions, tiles, TileFormat.F32, 16, x)

    np.testing.assert_array_equal(linear(functions, tiles, TileFormat.F32, 16, x, bias=bias), without + bias)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tile_format", TileFormat)
def test_one_number_that_is_not_finite_spoils_its_row_and_no_other(functions, tile_format, poison):
    x = normal(20, 64)
    tiles, _ = random_weights(tile_format, 32, 64, seed=3)
    clean = linear(functions, tiles, tile_format, 32, x)
    x[7, 40] = poison

    y = linear(functions, tiles, tile_format, 32, x)

    assert not np.isfinite(y[7]).any()
    others = np.arange(20) != 7
    np.testing.assert_array_equal(y[others], clean[others])


@drawn
@given(groups=st.integers(1, 80), scale=st.sampled_from([1e-3, 1.0, 1e3]), seed=st.integers(0, 50))
def test_rms_norm(functions, groups, scale, seed):
    x, weight = normal(16 * groups, seed=seed, scale=scale), normal(16 * groups, seed=seed + 1)
    y = np.empty_like(x)

    functions.forebay_rms_norm(address(x), address(weight), len(x), ctypes.c_float(1e-5), address(y))

    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean() + 1e-5) * weight
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-7)


@drawn
@given(head_dim=st.sampled_from([16, 48, 64, 80, 96, 128, 256]), position=st.integers(0, 9000))
def test_rope_turns_each_number_with_its_half(functions, head_dim, position):
    x, half = normal(head_dim, seed=position), head_dim // 2
    frequencies = (10000.0 ** -(np.arange(half) / half)).astype(np.float32)
    y = x.copy()

    functions.forebay_rope(address(y), position, address(frequencies), head_dim)

    angles = (np.float32(position) * frequencies).astype(np.float64)
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * angles)
    np.testing.assert_allclose(y, np.concatenate([turned.real, turned.imag]), atol=2e-6)


def test_silu(functions):
    x = np.concatenate([np.linspace(-100, 100, 2001), [-1e30, -88.5, 0.0, 1e30] * 4]).astype(np.float32)[:2016]
    y = np.empty_like(x)

    functions.forebay_silu(address(x), len(x), address(y))

    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = wide / (1 + np.exp(-wide))
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=1e-6)


@drawn
@given(
    head_dim=st.sampled_from([16, 64, 80, 96, 128]),
    block_tokens=st.sampled_from([16, 32, 64, 256]),
    query_count=st.integers(1, 6),
    position=st.one_of(st.integers(0, 70), st.sampled_from([255, 256, 257, 511, 530])),
    is_float32=st.booleans(),
)
def test_attention(functions, head_dim, block_tokens, query_count, position, is_float32):
    queries = normal(query_count, head_dim, seed=1)
    keys, values = normal(position + 1, head_dim, seed=2), normal(position + 1, head_dim, seed=3)
    y, arena = attention(functions, (queries, keys, values), block_tokens, is_float32)

    # The kernel's own roundings of its inputs are part of what it computes; those of its weights are in the tolerance.
    scaled = queries / np.float32(head_dim**0.5)
    if not is_float32:
        scaled, keys, values = (bfloat16_to_float32(round_to_bfloat16(one)) for one in (scaled, keys, values))
    scores = scaled.astype(np.float64) @ keys.T.astype(np.float64)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ values
    np.testing.assert_allclose(y, expected, atol=3e-6 if is_float32 else 1e-2, rtol=1e-5)
    assert arena[0].tolist() == [0xFF] * arena.shape[1], "a block of somebody else was written"


@pytest.mark.parametrize("position", [0, 1, 30, 31, 32, 300])
def test_attention_ignores_what_others_left_in_its_blocks(functions, position):
    keys, values = normal(position + 1, 64, seed=2), normal(position + 1, 64, seed=3)

    clean, _ = attention(functions, (normal(3, 64), keys, values), 32, left_over=0x00)
    dirty, _ = attention(functions, (normal(3, 64), keys, values), 32, left_over=0xFF)  # all NaN

    np.testing.assert_array_equal(clean, dirty)


@pytest.mark.parametrize("is_float32", [False, True])
def test_a_nan_key_makes_the_result_a_nan(functions, is_float32):
    keys, values = normal(300, 64, seed=2), normal(300, 64, seed=3)
    keys[3, 5] = np.nan

    y, _ = attention(functions, (normal(2, 64), keys, values), 32, is_float32)

    assert np.isnan(y).all()


def attention(functions, inputs, block_tokens, is_float32=False, left_over=0xFF):
    """The kernel's result, and the arena [blocks, bytes], whose block 0 is not the sequence's."""
    queries, keys, values = inputs
    position, head_dim = len(keys) - 1, keys.shape[1]
    block_count = position // block_tokens + 1
    table = np.random.default_rng(position).permutation(block_count).astype(np.int32) + 1
    block_bytes = 2 * block_tokens * head_dim * (4 if is_float32 else 2)
    arena = np.full((block_count + 1, block_bytes), left_over, np.uint8)
    y = np.empty_like(queries)
    failed = functions.forebay_attention(
        *(address(queries), len(queries), address(keys), address(values), position, head_dim, block_tokens),
        *(int(is_float32), address(table), address(arena), address(y)),
    )
    assert not failed
    return y, arena


def test_peaks_are_measured_for_every_arithmetic():
    peaks = measure_peaks(load_library(), threads=2)

    assert peaks.threads == 2
    assert all(peaks.operations_per_s[kind] > 0 for kind in Arithmetic)
    assert peaks.read_bytes_per_s > 0
