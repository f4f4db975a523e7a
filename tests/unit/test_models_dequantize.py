"""Packed numbers are decoded to the same bits as ggml's own Python package decodes them."""

import gguf
import numpy as np
import pytest

from forebay.models.gguf_dequantize import bfloat16_to_float32, dequantize
from forebay.models.gguf_types import GgufTensorType


@pytest.mark.parametrize("kind", GgufTensorType, ids=lambda kind: kind.name)
def test_block_sizes_are_ggml_s(kind: GgufTensorType) -> None:
    assert (kind.block_elements, kind.block_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]


@pytest.mark.parametrize("kind", GgufTensorType, ids=lambda kind: kind.name)
def test_any_bits_decode_as_the_reference_does(kind: GgufTensorType) -> None:
    packed = np.random.default_rng(kind).integers(0, 256, (3, 8 * kind.block_bytes), dtype=np.uint8)
    shape = (3, 8 * kind.block_elements)

    with np.errstate(all="ignore"):  # random scales may be NaN or infinite
        decoded = dequantize(packed.reshape(-1), kind, shape)
        expected = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(kind)).reshape(shape)

    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize(
    "kind", [GgufTensorType.Q4_0, GgufTensorType.Q4_1, GgufTensorType.Q8_0], ids=lambda kind: kind.name
)
def test_numbers_survive_packing_within_the_step(kind: GgufTensorType) -> None:
    numbers = np.random.default_rng(0).standard_normal((16, 64)).astype(np.float32)
    packed = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType(kind))

    decoded = dequantize(packed.reshape(-1), kind, numbers.shape)

    step = np.ptp(numbers) / (255 if kind is GgufTensorType.Q8_0 else 15)
    assert np.abs(decoded - numbers).max() <= step


def test_the_result_is_the_caller_s_own() -> None:
    packed = np.arange(4, dtype=np.float32).view(np.uint8)
    packed.flags.writeable = False

    dequantize(packed, GgufTensorType.F32, (4,))[0] = 9

    assert packed.view(np.float32)[0] == 0


def test_bfloat16() -> None:
    words = np.array([[0x3F80, 0xBF80], [0x0000, 0x7F80]], dtype=np.uint16)

    np.testing.assert_array_equal(bfloat16_to_float32(words), np.array([[1, -1], [0, np.inf]], dtype=np.float32))
