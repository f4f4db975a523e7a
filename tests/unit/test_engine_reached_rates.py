"""Which steps tell what a worker reaches, and what is expected before there are any."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.engine.reached_rates import BYTES_SHARE, FLOPS_SHARE, ReachedRates
from forebay.engine.step_cost import StepSize
from forebay.kernels.peaks import Arithmetic, Peaks
from forebay.testing.fake_engine import MODEL_COST

CORES = 2
PEAKS = Peaks(CORES, dict.fromkeys(Arithmetic, 4000.0), 1000.0, 500.0)
PROMPT = StepSize(row_count=64, sampled_row_count=1, attended_tokens=64 * 65 // 2, context_tokens=64)
TOKEN = StepSize(row_count=1, sampled_row_count=1, attended_tokens=10, context_tokens=10)


def test_nothing_is_known_before_peaks_or_steps() -> None:
    rates = ReachedRates(MODEL_COST, CORES)
    assert (rates.flops_per_s, rates.bytes_per_s) == (None, None)


def test_a_part_of_the_peaks_is_expected() -> None:
    rates = ReachedRates(MODEL_COST, CORES)
    rates.expect(PEAKS)
    # a row's 200 operations of the model are 400 of the machine
    assert rates.flops_per_s == pytest.approx(FLOPS_SHARE * 4000.0 / 2)
    assert rates.bytes_per_s == pytest.approx(BYTES_SHARE * 1000.0)


def test_steps_say_better_from_the_second_on() -> None:
    rates = ReachedRates(MODEL_COST, CORES)
    rates.expect(PEAKS)
    expected = rates.flops_per_s, rates.bytes_per_s
    for size in (PROMPT, TOKEN):
        rates.note(size, CORES, 0.5)
    assert (rates.flops_per_s, rates.bytes_per_s) == expected
    for size in (PROMPT, TOKEN):
        rates.note(size, CORES, 0.5)
    assert rates.flops_per_s == pytest.approx(MODEL_COST.of(PROMPT).operations / 0.5)
    assert rates.bytes_per_s == pytest.approx(MODEL_COST.of(TOKEN).moved_bytes / 0.5)


@pytest.mark.parametrize(
    ("size", "cores"),
    [
        (PROMPT, 1),  # part of the cores
        (StepSize(64, 3, 500, 500), CORES),  # generates for several beside the prompt
        (StepSize(63, 1, 500, 500), CORES),  # too short to be bound by arithmetic
        (StepSize(2, 2, 20, 20), CORES),  # two sequences
    ],
)
def test_other_steps_say_nothing(size: StepSize, cores: int) -> None:
    rates = ReachedRates(MODEL_COST, CORES)
    for _ in range(5):
        rates.note(size, cores, 0.5)
    assert (rates.flops_per_s, rates.bytes_per_s) == (None, None)


@given(st.lists(st.floats(1e-4, 1e-2), min_size=20), st.floats(0, 1e6))
def test_a_stall_moves_a_rate_by_a_factor_that_is_bounded(seconds: list[float], stall_s: float) -> None:
    rates = ReachedRates(MODEL_COST, CORES)
    for one in seconds:
        rates.note(PROMPT, CORES, one)
    before = rates.flops_per_s
    rates.note(PROMPT, CORES, stall_s)
    assert before is not None
    assert rates.flops_per_s is not None
    assert before / 1.31 <= rates.flops_per_s <= before * 1.09
