"""What corrections may be, how far one request moves them, and that they come to what is true."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.routing.correction import (
    DEFAULT_PATH_S,
    LEAST_FACTOR,
    MOST_FACTOR,
    UNCORRECTED,
    Corrections,
    Phase,
    RatioEstimate,
    Spread,
)

ratios = st.floats(1e-6, 1e6)
true_ratios = st.floats(LEAST_FACTOR, MOST_FACTOR)


def after(samples: list[float]) -> RatioEstimate:
    estimate = RatioEstimate()
    for sample in samples:
        estimate.take(sample)
    return estimate


@given(st.lists(ratios, max_size=60))
def test_a_factor_stays_within_its_bounds(samples: list[float]) -> None:
    assert LEAST_FACTOR <= after(samples).value <= MOST_FACTOR


@given(st.lists(ratios, max_size=20), true_ratios)
def test_it_comes_to_what_is_true_whatever_was_before(samples: list[float], truth: float) -> None:
    assert after([*samples, *[truth] * 60]).value == pytest.approx(truth, rel=0.02)


@given(st.lists(true_ratios, min_size=5, max_size=40), ratios)
def test_one_outlier_moves_it_by_less_than_a_tenth(samples: list[float], outlier: float) -> None:
    estimate = after(samples)
    before = estimate.value
    estimate.take(outlier)
    assert abs(math.log(estimate.value / before)) <= 0.2 * math.log(1.5) + 1e-9


@given(true_ratios, st.lists(st.booleans(), min_size=100, max_size=100))
def test_one_in_five_that_is_wild_does_not_carry_it_away(truth: float, are_high: list[bool]) -> None:
    samples = [truth if i % 5 else (1e6 if is_high else 1e-6) for i, is_high in enumerate(are_high)]
    assert abs(math.log(after(samples).value / truth)) <= math.log(1.5)


@given(st.lists(ratios, max_size=60))
def test_a_margin_is_bounded_and_never_below_one(samples: list[float]) -> None:
    spread = Spread()
    for sample in samples:
        spread.take(sample)
        assert 1.0 <= spread.margin <= MOST_FACTOR**1.6 + 1e-9


@given(st.floats(0.0, 1.0), st.integers(0, 1_000))
def test_nine_in_ten_are_within_the_margin(sigma: float, seed: int) -> None:
    numbers, spread = random.Random(seed), Spread()
    errors = [math.exp(numbers.gauss(0.0, sigma)) for _ in range(600)]
    for error in errors:
        spread.take(error)
    within = sum(error <= spread.margin * 1.001 for error in errors) / len(errors)
    assert within >= 0.8


def test_factors_are_apart_by_worker_phase_and_magnitude() -> None:
    corrections = Corrections()
    for _ in range(40):
        corrections.learn("a", Phase.PREFILL, 300, 2.0)
        corrections.learn("a", Phase.DECODE, 8, 3.0)
    assert corrections.factor("a", Phase.PREFILL, 511) == pytest.approx(2.0, rel=0.02)
    assert corrections.factor("a", Phase.DECODE, 8) == pytest.approx(3.0, rel=0.02)
    assert corrections.factor("b", Phase.PREFILL, 300) == 1.0
    # a magnitude that was never seen is like all others of the phase
    assert corrections.factor("a", Phase.PREFILL, 5_000) == pytest.approx(2.0, rel=0.02)
    for _ in range(40):
        corrections.learn("a", Phase.PREFILL, 5_000, 0.5)
    assert corrections.factor("a", Phase.PREFILL, 300) == pytest.approx(2.0, rel=0.02)
    corrections.keep({"b"})
    assert corrections.factor("a", Phase.DECODE, 8) == 1.0


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_ratio_teaches_nothing(ratio: float) -> None:
    corrections = Corrections()
    corrections.learn("a", Phase.DECODE, 1, ratio)
    assert corrections.factor("a", Phase.DECODE, 1) == 1.0


@given(st.lists(st.floats(-10, 10), max_size=50), st.floats(0.001, 0.2))
def test_the_path_is_bounded_and_comes_to_what_is_true(samples: list[float], truth_s: float) -> None:
    corrections = Corrections()
    for sample in samples:
        before_s = corrections.path_s(is_split=True)
        corrections.learn_path(is_split=True, seconds=sample)
        assert 0.0 <= corrections.path_s(is_split=True) <= min(0.25, 1.2 * before_s + 0.001)
    for _ in range(150):
        corrections.learn_path(is_split=True, seconds=truth_s)
    assert corrections.path_s(is_split=True) == pytest.approx(truth_s, rel=0.02)
    assert corrections.path_s(is_split=False) == DEFAULT_PATH_S


def test_nobody_has_written_into_the_shared_one() -> None:
    assert UNCORRECTED.factor("a", Phase.DECODE, 1) == 1.0
