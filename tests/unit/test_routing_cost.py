"""The design's formulas against numbers worked out by hand, and what must hold of every worker and request."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import InvalidFieldError
from forebay.routing.cost import (
    ChipRates,
    LinkRates,
    ModelSize,
    StepCost,
    transfer_exposed_s,
)

MODEL = ModelSize(parameters=1_000_000, weight_bytes=500_000, kv_token_bytes=1_000, layers=10, width=100)
RATES = ChipRates(step_overhead_s=0.001, flops_per_s=1e9, bytes_per_s=1e8, watts=50.0, usd_per_hour=3.6)
COST = StepCost(MODEL, RATES)
LINK = LinkRates(bytes_per_s=1e6, latency_s=0.002)

models = st.builds(
    ModelSize,
    parameters=st.integers(1, 10**12),
    weight_bytes=st.integers(1, 10**12),
    kv_token_bytes=st.integers(1, 10**7),
    layers=st.integers(1, 200),
    width=st.integers(1, 20_000),
)
rates = st.builds(
    ChipRates,
    step_overhead_s=st.floats(0, 1),
    flops_per_s=st.floats(1e6, 1e16),
    bytes_per_s=st.floats(1e6, 1e13),
    watts=st.floats(0, 2000),
    usd_per_hour=st.floats(0, 100),
)
costs = st.builds(StepCost, models, rates)
links = st.builds(LinkRates, bytes_per_s=st.floats(1e3, 1e12), latency_s=st.floats(0, 1))
tokens = st.integers(0, 200_000)


def test_prefill_is_overhead_and_operations_over_the_rate() -> None:
    # 2·10⁶·300 + 2·10·100·(400² − 100²) = 6·10⁸ + 3·10⁸ operations at 10⁹ a second
    assert COST.prefill_s(400, 100) == pytest.approx(0.001 + 0.9)
    assert COST.prefill_s(400, 400) == 0.0


def test_a_decode_step_is_bound_by_memory_or_by_arithmetic() -> None:
    # 500,000 + 1,000·500 bytes at 10⁸ a second are 10 ms; 2·10⁶ operations a sequence are 2 ms
    assert COST.decode_step_s(1, 500) == pytest.approx(0.001 + 0.010)
    assert COST.decode_step_s(5, 500) == pytest.approx(0.001 + 0.010)
    assert COST.decode_step_s(8, 500) == pytest.approx(0.001 + 0.016)


def test_a_transfer_hides_behind_the_prefill_but_for_its_tail() -> None:
    # 100,000 bytes take 102 ms, the last 10,000 of them 12 ms
    assert transfer_exposed_s(LINK, 100_000, prefill_s=0.2, tail_bytes=10_000) == pytest.approx(0.012)
    assert transfer_exposed_s(LINK, 100_000, prefill_s=0.05, tail_bytes=10_000) == pytest.approx(0.052 + 0.012)
    assert transfer_exposed_s(LINK, 5_000, prefill_s=1.0, tail_bytes=10_000) == pytest.approx(0.007)


def test_energy_and_money_are_rates_times_busy_seconds() -> None:
    assert COST.watts == 50.0
    assert COST.usd_per_s * 2.0 == pytest.approx(0.002)


@given(costs, tokens, tokens, st.integers(1, 1000))
def test_prefill_grows_with_what_is_left_and_is_never_negative(
    cost: StepCost, prompt_tokens: int, cached_tokens: int, more: int
) -> None:
    cached_tokens = min(cached_tokens, prompt_tokens)
    seconds = cost.prefill_s(prompt_tokens, cached_tokens)
    assert 0.0 <= seconds < math.inf
    assert cost.prefill_s(prompt_tokens + more, cached_tokens) >= seconds
    assert cost.prefill_s(prompt_tokens, min(prompt_tokens, cached_tokens + more)) <= seconds


@given(costs, st.integers(1, 512), tokens, st.integers(0, 1000), st.integers(0, 64))
def test_a_step_grows_with_batch_and_context(
    cost: StepCost, batch: int, context_tokens: int, more_tokens: int, more_sequences: int
) -> None:
    seconds = cost.decode_step_s(batch, context_tokens)
    assert cost.step_overhead_s <= seconds < math.inf
    assert cost.decode_step_s(batch + more_sequences, context_tokens + more_tokens) >= seconds
    assert seconds / batch >= cost.decode_step_s(batch * 2, context_tokens) / (batch * 2) - 1e-12, "sharing is cheaper"


@given(models, rates, st.integers(1, 100_000), st.floats(1.01, 100))
def test_a_faster_chip_is_never_slower(model: ModelSize, slow: ChipRates, prompt_tokens: int, factor: float) -> None:
    fast = dataclasses.replace(slow, flops_per_s=slow.flops_per_s * factor, bytes_per_s=slow.bytes_per_s * factor)
    assert StepCost(model, fast).prefill_s(prompt_tokens, 0) <= StepCost(model, slow).prefill_s(prompt_tokens, 0)
    assert StepCost(model, fast).decode_step_s(4, 100) <= StepCost(model, slow).decode_step_s(4, 100)


@given(links, st.integers(0, 10**12), st.floats(0, 1e3), st.integers(0, 10**9))
def test_what_is_exposed_is_between_nothing_and_the_whole_transfer_with_its_tail(
    link: LinkRates, kv_bytes: int, prefill_s: float, tail_bytes: int
) -> None:
    exposed_s = transfer_exposed_s(link, kv_bytes, prefill_s, tail_bytes)
    assert 0.0 <= exposed_s <= 2 * link.transfer_s(kv_bytes)
    assert transfer_exposed_s(link, kv_bytes, prefill_s + 1.0, tail_bytes) <= exposed_s
    assert transfer_exposed_s(link, kv_bytes + 1_000, prefill_s, tail_bytes) >= exposed_s


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("flops_per_s", 0.0),
        ("flops_per_s", math.nan),
        ("bytes_per_s", math.inf),
        ("bytes_per_s", -1.0),
        ("step_overhead_s", -1e-9),
        ("watts", math.nan),
        ("usd_per_hour", math.inf),
    ],
)
def test_rates_that_no_chip_has_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidFieldError, match=name) as caught:
        dataclasses.replace(RATES, **{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize("name", ["parameters", "weight_bytes", "kv_token_bytes", "layers", "width"])
def test_a_model_without_size_is_refused(name: str) -> None:
    with pytest.raises(InvalidFieldError, match=name):
        dataclasses.replace(MODEL, **{name: 0})


@pytest.mark.parametrize(("bytes_per_s", "latency_s"), [(0.0, 0.0), (math.nan, 0.0), (1.0, -1.0), (1.0, math.inf)])
def test_a_link_that_cannot_be_is_refused(bytes_per_s: float, latency_s: float) -> None:
    with pytest.raises(InvalidFieldError):
        LinkRates(bytes_per_s, latency_s)
