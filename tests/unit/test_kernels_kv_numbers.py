"""KV's number formats in numpy against torch's, and what rounding, range, NaN and infinity make of a number."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forebay.kernels.kv_numbers import RAW_TYPES, decode, decode_int8, encode, encode_int8
from forebay.kv.conversion import plan_conversion
from forebay.kv.layout import KvDtype, KvLayout

TORCH = {
    KvDtype.BFLOAT16: (torch.bfloat16, torch.uint16),
    KvDtype.FLOAT16: (torch.float16, torch.uint16),
    KvDtype.FLOAT8_E4M3: (torch.float8_e4m3fn, torch.uint8),
}
UNSCALED = [dtype for dtype in KvDtype if dtype is not KvDtype.INT8]
BOUNDS = {
    dtype: plan_conversion([KvLayout(KvDtype.FLOAT32, 1, 1, 1)], KvLayout(dtype, 1, 1, 1)).error_bound
    for dtype in KvDtype
}
any_floats = arrays(np.uint32, 40, elements=st.integers(0, 2**32 - 1)).map(lambda bits: bits.view(np.float32))


def everything(dtype):
    raw = RAW_TYPES[dtype]
    return np.arange(np.iinfo(raw).max + 1).astype(raw)


@pytest.mark.parametrize("dtype", TORCH)
def test_every_number_is_read_as_torch_reads_it(dtype):
    ours = decode(everything(dtype), dtype)

    theirs = torch.from_numpy(everything(dtype)).view(TORCH[dtype][0]).float().numpy()
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(np.signbit(ours[ours == 0]), np.signbit(theirs[theirs == 0]))


@pytest.mark.parametrize("dtype", TORCH)
def test_every_number_survives_float32(dtype):
    raw = everything(dtype)
    numbers = decode(raw, dtype)
    is_number = ~np.isnan(numbers)

    again = encode(numbers, dtype)

    np.testing.assert_array_equal(again[is_number], raw[is_number])
    assert np.isnan(decode(again[~is_number], dtype)).all()


@pytest.mark.parametrize("dtype", TORCH)
@given(numbers=any_floats)
def test_rounding_is_torchs_within_the_range(dtype, numbers):
    with np.errstate(invalid="ignore"):
        in_range = numbers[np.abs(numbers.astype(np.float64)) <= BOUNDS[dtype].largest]

    theirs = torch.from_numpy(in_range.copy()).to(TORCH[dtype][0]).view(TORCH[dtype][1]).numpy()
    np.testing.assert_array_equal(encode(in_range, dtype), theirs)


@pytest.mark.parametrize("dtype", TORCH)
def test_rounding_is_torchs_on_every_tie(dtype):
    raw = everything(dtype)
    numbers = np.unique(decode(raw, dtype))
    numbers = numbers[np.isfinite(numbers)].astype(np.float64)
    ties = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
    beside = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf))])

    theirs = torch.from_numpy(beside).to(TORCH[dtype][0]).view(TORCH[dtype][1]).numpy()
    np.testing.assert_array_equal(encode(beside, dtype), theirs)


def distance_and_bound(numbers, converted, bound):
    original = numbers.astype(np.float64)
    if bound.largest is not None:
        original = np.clip(original, -bound.largest, bound.largest)
    magnitudes = np.abs(original)
    allowed = bound.relative * magnitudes + bound.of_row * magnitudes.max(-1, keepdims=True) + bound.absolute
    return np.abs(converted.astype(np.float64) - original), allowed


@pytest.mark.parametrize("dtype", TORCH)
@given(numbers=any_floats)
def test_finite_numbers_stay_within_the_bound_and_others_stay_others(dtype, numbers):
    converted = decode(encode(numbers, dtype), dtype)

    is_finite = np.isfinite(numbers)
    np.testing.assert_array_equal(np.isfinite(converted), is_finite)
    if is_finite.any():
        distance, allowed = distance_and_bound(numbers[is_finite], converted[is_finite], BOUNDS[dtype])
        assert (distance <= allowed).all()


@pytest.mark.parametrize("dtype", UNSCALED)
def test_nan_and_infinity(dtype):
    found = decode(encode(np.array([np.nan, -np.nan, np.inf, -np.inf], np.float32), dtype), dtype)

    infinity = np.nan if dtype is KvDtype.FLOAT8_E4M3 else np.inf
    np.testing.assert_array_equal(found, np.array([np.nan, np.nan, infinity, -infinity], np.float32))


rows = st.floats(-1, 1, width=32).flatmap(
    lambda _: st.tuples(
        arrays(np.float32, (3, 16), elements=st.floats(-1, 1, width=32)),
        st.sampled_from([1e-45, 1e-38, 1e-36, 1.6e-36, 1e-10, 1.0, 300.0, 1e30, float(np.finfo(np.float32).max)]),
    )
)


@given(drawn=rows)
def test_int8_stays_within_its_bound_of_the_rows_largest(drawn):
    numbers = (drawn[0] * np.float32(drawn[1])).astype(np.float32)

    raw, scales = encode_int8(numbers)

    converted = decode_int8(raw, scales)
    distance, allowed = distance_and_bound(numbers, converted, BOUNDS[KvDtype.INT8])
    assert (distance <= allowed).all()
    assert np.isfinite(converted).all()
    assert (raw.view(np.int8) >= -127).all()


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
def test_one_fault_makes_an_int8_row_nan_and_no_other(fault):
    numbers = np.ones((2, 8), np.float32)
    numbers[0, 3] = fault

    converted = decode_int8(*encode_int8(numbers))

    assert np.isnan(converted[0]).all()
    np.testing.assert_array_equal(converted[1], numbers[1])
