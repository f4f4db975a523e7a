"""The number formats of KV in numpy: from and to float32. Knows numbers, not blocks.

The reference of `cpu/native/kv_numbers.h`, bit for bit: rounding is to nearest even, finite numbers beyond a format's
range become its largest, and what NaN and infinity become is said in `forebay.kv.conversion`. A format's numbers are
held in an unsigned integer of its size ("raw").
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray

from forebay.kv.layout import KvDtype

Raw = NDArray[np.unsignedinteger]
Floats = NDArray[np.float32]
Bits = NDArray[np.uint32]

_INFINITY: Final = np.uint32(0x7F80_0000)
_NAN: Final = np.uint32(0x7FC0_0000)
_MAGNITUDE: Final = np.uint32(0x7FFF_FFFF)
_SMALLEST_AMAX: Final = np.float32(2**-119)  # rows below it become zeros: scale and inverse stay normal numbers
_LARGEST_SCALE: Final = np.float32(float.fromhex("0x1.020406p+121"))  # 127 times it is finite

RAW_TYPES: Final[Mapping[KvDtype, type[np.unsignedinteger]]] = MappingProxyType(
    {
        KvDtype.FLOAT32: np.uint32,
        KvDtype.BFLOAT16: np.uint16,
        KvDtype.FLOAT16: np.uint16,
        KvDtype.FLOAT8_E4M3: np.uint8,
        KvDtype.INT8: np.uint8,
    }
)


def decode(raw: Raw, dtype: KvDtype) -> Floats:
    """Numbers of a dtype without scales, as float32, exactly."""
    return _DECODERS[dtype](raw.astype(np.uint32)).view(np.float32)


def encode(numbers: Floats, dtype: KvDtype) -> Raw:
    """float32 rounded to a dtype without scales."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    return _ENCODERS[dtype](bits, bits & _MAGNITUDE).astype(RAW_TYPES[dtype])


def decode_int8(raw: Raw, scales: Floats) -> Floats:
    """Args: raw: [..., head_dim]; scales: [...], one for each row."""
    with np.errstate(invalid="ignore", over="ignore"):
        return raw.view(np.int8).astype(np.float32) * scales[..., None]


def encode_int8(numbers: Floats) -> tuple[Raw, Floats]:
    """Integers [..., head_dim] and the scale of each row, [...], NaN where a row holds NaN or an infinity."""
    most = (np.ascontiguousarray(numbers).view(np.uint32) & _MAGNITUDE).max(-1)
    is_finite = most < _INFINITY
    amax = np.where(is_finite, most, 0).astype(np.uint32).view(np.float32)
    is_kept = amax >= _SMALLEST_AMAX
    divisor = np.where(is_kept, amax, np.float32(1))
    scales = np.where(is_kept, np.minimum(divisor / np.float32(127), _LARGEST_SCALE), np.float32(0))
    inverse = np.float32(127) / divisor
    scaled = np.where(is_kept[..., None], numbers, np.float32(0)) * inverse[..., None]
    raw = np.rint(scaled).astype(np.int8).view(np.uint8)
    return raw, np.where(is_finite, scales, _NAN.view(np.float32))


def _rounded(magnitude: Bits, shift: int) -> Bits:
    """Bits above `shift`, rounded to nearest even."""
    kept = np.uint32(shift)
    return (magnitude + np.uint32((1 << (shift - 1)) - 1) + ((magnitude >> kept) & np.uint32(1))) >> kept


def _with_sign(result: Bits, bits: Bits, sign: int) -> Bits:
    """Args: sign: the format's sign bit."""
    return result | np.where(bits > _MAGNITUDE, np.uint32(sign), np.uint32(0))


def _encode_float32(bits: Bits, magnitude: Bits) -> Bits:
    encoded: Bits = np.where(magnitude > _INFINITY, _NAN, bits)
    return encoded


def _encode_bfloat16(bits: Bits, magnitude: Bits) -> Bits:
    rounded = np.minimum(_rounded(magnitude, 16), 0x7F7F)
    signed = _with_sign(np.where(magnitude >= _INFINITY, 0x7F80, rounded).astype(np.uint32), bits, 0x8000)
    return np.where(magnitude > _INFINITY, np.uint32(0x7FC0), signed)


def _encode_float16(bits: Bits, magnitude: Bits) -> Bits:
    bounded = np.minimum(magnitude, 0x477F_E000).astype(np.uint32)
    # The unit in the last place of 0.5 is that of a subnormal half.
    small = (bounded.view(np.float32) + np.float32(0.5)).view(np.uint32) - np.uint32(0x3F00_0000)
    rounded = np.where(bounded < 0x3880_0000, small, _rounded(bounded, 13) - np.uint32(112 << 10))
    signed = _with_sign(np.where(magnitude >= _INFINITY, 0x7C00, rounded).astype(np.uint32), bits, 0x8000)
    return np.where(magnitude > _INFINITY, np.uint32(0x7E00), signed)


def _encode_float8_e4m3(bits: Bits, magnitude: Bits) -> Bits:
    bounded = np.minimum(magnitude, 0x43E0_0000).astype(np.uint32)
    # The unit in the last place of 2^14 is that of a subnormal number of this format.
    small = (bounded.view(np.float32) + np.float32(2**14)).view(np.uint32) - np.uint32(0x4680_0000)
    rounded = np.where(bounded < 0x3C80_0000, small, _rounded(bounded, 20) - np.uint32(120 << 3))
    return np.where(magnitude >= _INFINITY, np.uint32(0x7F), _with_sign(rounded.astype(np.uint32), bits, 0x80))


def _decode_float16(raw: Bits) -> Bits:
    shifted = (raw & np.uint32(0x7FFF)) << np.uint32(13)
    # The exponent's bias is mended by a multiplication, which makes subnormal numbers normal.
    finite = (shifted.view(np.float32) * np.float32(2**112)).view(np.uint32)
    magnitude: Bits = np.where(shifted >= 0x0F80_0000, shifted | _INFINITY, finite)
    return magnitude | ((raw & np.uint32(0x8000)) << np.uint32(16))


def _decode_float8_e4m3(raw: Bits) -> Bits:
    magnitude = raw & np.uint32(0x7F)
    finite = ((magnitude << np.uint32(20)).view(np.float32) * np.float32(2**120)).view(np.uint32)
    signed: Bits = finite | ((raw & np.uint32(0x80)) << np.uint32(24))
    return np.where(magnitude == 0x7F, _NAN, signed)


_DECODERS: Final[Mapping[KvDtype, Callable[[Bits], Bits]]] = MappingProxyType(
    {
        KvDtype.FLOAT32: lambda raw: raw,
        KvDtype.BFLOAT16: lambda raw: raw << np.uint32(16),
        KvDtype.FLOAT16: _decode_float16,
        KvDtype.FLOAT8_E4M3: _decode_float8_e4m3,
    }
)
_ENCODERS: Final[Mapping[KvDtype, Callable[[Bits, Bits], Bits]]] = MappingProxyType(
    {
        KvDtype.FLOAT32: _encode_float32,
        KvDtype.BFLOAT16: _encode_bfloat16,
        KvDtype.FLOAT16: _encode_float16,
        KvDtype.FLOAT8_E4M3: _encode_float8_e4m3,
    }
)
