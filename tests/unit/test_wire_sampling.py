"""Every range of SamplingParams, by name, and the defaults."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.engine.types import SamplingParams
from forebay.errors import ContextExceededError, ForebayError, InvalidFieldError
from forebay.v1 import common_pb2
from forebay.wire.sampling import ALLOWED, to_params, validate


def converted(context_left_tokens: int = 100, **fields: Any) -> SamplingParams:
    return to_params(
        common_pb2.SamplingParams(**fields),
        context_left_tokens=context_left_tokens,
        eos_token_ids=(2,),
        seed_if_absent=7,
    )


BAD = [
    ("temperature", [-0.1, math.nan, math.inf, -math.inf]),
    ("top_p", [0.0, -1.0, 1.01, math.nan, math.inf]),
    ("top_k", [-1]),
    ("min_p", [-0.01, 1.01, math.nan]),
    ("repetition_penalty", [0.0, -1.0, math.nan, math.inf]),
    ("presence_penalty", [-2.1, 2.1, math.nan]),
    ("frequency_penalty", [-2.1, 2.1, math.nan]),
    ("max_tokens", [0, -5]),
    ("logprobs", [-1, 21]),
]


@pytest.mark.parametrize(("name", "number"), [(name, number) for name, numbers in BAD for number in numbers])
def test_out_of_range_is_refused_by_name(name: str, number: float) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        validate(common_pb2.SamplingParams(**{name: number}))
    assert caught.value.field == f"sampling.{name}"


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("temperature", -0.1, "temperature must be a finite number >= 0, not -0.1"),
        ("temperature", math.inf, "temperature must be a finite number >= 0, not inf"),
        ("top_p", 1.5, "top_p must be a number in (0, 1], not 1.5"),
        ("max_tokens", -5_000_000, "max_tokens must be a whole number in 1..2147483647, not -5000000"),
        ("logprobs", 21, "logprobs must be a whole number in 0..20, not 21"),
    ],
)
def test_a_refusal_says_what_is_allowed_and_what_was_given(name: str, number: float, message: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        validate(common_pb2.SamplingParams(**{name: number}))
    assert caught.value.message == message


def test_what_is_allowed_is_told_of_every_field() -> None:
    assert set(ALLOWED) == {field.name for field in common_pb2.SamplingParams.DESCRIPTOR.fields}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"stop": ["x"] * 17}, "sampling.stop"),
        ({"stop": ["fine", ""]}, "sampling.stop[1]"),
        ({"stop": ["x" * 257]}, "sampling.stop[0]"),
        ({"stop_token_ids": [1] * 65}, "sampling.stop_token_ids"),
    ],
)
def test_stops_are_bounded(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidFieldError) as caught:
        validate(common_pb2.SamplingParams(**fields))
    assert caught.value.field == field
    assert "x" * 257 not in caught.value.message


def test_the_limits_themselves_are_allowed() -> None:
    validate(
        common_pb2.SamplingParams(
            max_tokens=1,
            temperature=0,
            top_p=1,
            top_k=0,
            min_p=1,
            repetition_penalty=0.01,
            presence_penalty=-2,
            frequency_penalty=2,
            stop=["x" * 256] * 16,
            stop_token_ids=[1] * 64,
            logprobs=20,
        )
    )


def test_defaults_are_those_of_the_contract() -> None:
    assert converted() == SamplingParams(max_tokens=100, seed=7, temperature=1.0, stop_token_ids=frozenset({2}))


def test_zero_that_was_given_is_not_a_default() -> None:
    params = converted(temperature=0.0, seed=0, logprobs=0, top_k=0)
    assert (params.temperature, params.seed, params.logprobs) == (0.0, 0, 0)


def test_eos_ends_unless_it_is_ignored() -> None:
    assert converted(stop_token_ids=[9]).stop_token_ids == {2, 9}
    assert converted(stop_token_ids=[9], ignore_eos=True).stop_token_ids == {9}


def test_what_does_not_fit_the_context_is_refused() -> None:
    assert converted(context_left_tokens=5, max_tokens=5).max_tokens == 5
    with pytest.raises(ContextExceededError) as caught:
        converted(context_left_tokens=5, max_tokens=6)
    assert caught.value.field == "sampling.max_tokens"
    with pytest.raises(ContextExceededError):
        converted(context_left_tokens=0)


@given(
    st.builds(
        common_pb2.SamplingParams,
        max_tokens=st.none() | st.integers(-(2**31), 2**31 - 1),
        temperature=st.none() | st.floats(width=32),
        top_p=st.none() | st.floats(width=32),
        top_k=st.none() | st.integers(-(2**31), 2**31 - 1),
        min_p=st.none() | st.floats(width=32),
        repetition_penalty=st.none() | st.floats(width=32),
        logprobs=st.none() | st.integers(-(2**31), 2**31 - 1),
    )
)
def test_anything_is_either_refused_with_a_field_or_safe(message: common_pb2.SamplingParams) -> None:
    try:
        params = to_params(message, context_left_tokens=100, eos_token_ids=(), seed_if_absent=0)
    except ForebayError as error:
        field = error.field
    else:
        field = None
    if field is not None:
        assert field.startswith("sampling.")
        return
    assert 1 <= params.max_tokens <= 100
    assert 0 <= params.temperature < math.inf
    assert 0 < params.top_p <= 1
    assert 0 <= params.min_p <= 1
    assert 0 < params.repetition_penalty < math.inf
    assert params.top_k >= 0
