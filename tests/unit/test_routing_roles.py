"""What is asked of a router is counted for a minute, and what is advised on the roles of workers."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.role import Role
from forebay.routing.cost import ChipRates, ModelSize, StepCost
from forebay.routing.demand import WINDOW_S, Demand, DemandWindow
from forebay.routing.option import Target
from forebay.routing.role_advice import Recommendation
from forebay.routing.role_split import LEAST_REQUESTS, RoleWorker, recommend

SIZE = ModelSize(parameters=100_000_000, weight_bytes=100_000_000, kv_token_bytes=23_040, layers=30, width=576)
RATES = ChipRates(step_overhead_s=3e-4, flops_per_s=4e11, bytes_per_s=2.5e10, watts=50.0, usd_per_hour=0.36)


def worker(number: int, role: Role, rates: ChipRates = RATES, **fields) -> RoleWorker:  # type: ignore[no-untyped-def]
    options = {"node_id": f"n{number}", "max_sequences": 16, **fields}
    return RoleWorker(f"w{number}", role, cost=StepCost(SIZE, rates), **options)


def asked(per_s: float, prompt: int, answer: int, cached: int = 0) -> Demand:
    count = max(LEAST_REQUESTS, round(per_s * 60))
    return Demand(count / per_s, count, count * prompt, count, count * cached, count * answer)


def advised(workers: list[RoleWorker], demand: Demand, target: Target | None = None) -> Recommendation:
    advice = recommend(workers, demand, target or Target())
    assert advice is not None
    return advice


def applied(workers: list[RoleWorker], advice: Recommendation) -> list[RoleWorker]:
    roles = dict(advice.switches)
    return [replace(one, role=roles.get(one.worker_id, one.role)) for one in workers]


TWO_TWO = [worker(0, Role.PREFILL), worker(1, Role.PREFILL), worker(2, Role.DECODE), worker(3, Role.DECODE)]


def test_long_prompts_and_short_answers_want_prefill_workers() -> None:
    advice = advised(TWO_TWO, asked(4.0, 1_000, 4))
    assert (advice.now.name, advice.best.name) == ("2:2", "3:1")
    assert advice.now.prefill_busy > 1.0
    assert math.isinf(advice.now.time_to_first_token_s)
    assert [role for _, role in advice.switches] == [Role.PREFILL]
    assert "work comes faster than it is done" in advice.reason
    assert "3:1 instead of 2:2" in advice.reason


def test_short_prompts_and_long_answers_want_decode_workers() -> None:
    slow = replace(RATES, bytes_per_s=5e8)
    workers = [replace(one, cost=StepCost(SIZE, slow), max_sequences=4) for one in TWO_TWO]
    advice = advised(workers, asked(0.1, 20, 400), Target(2.0, 0.3))
    assert advice.best.name == "1:3"
    assert [role for _, role in advice.switches] == [Role.DECODE]


def test_what_meets_its_targets_is_left_alone() -> None:
    advice = advised(TWO_TWO, asked(0.5, 200, 50))
    assert advice.switches == ()
    assert advice.reason.startswith("keep 2:2: prefill is")


def test_of_unlike_chips_the_one_is_switched_that_suits_the_other_role() -> None:
    fast = replace(RATES, flops_per_s=1.6e12)
    workers = [*TWO_TWO[:3], worker(3, Role.DECODE, fast)]
    assert advised(workers, asked(4.0, 1_000, 4)).switches == (("w3", Role.PREFILL),)


def test_little_that_was_asked_says_nothing() -> None:
    advice = advised(TWO_TWO, Demand(60.0, LEAST_REQUESTS - 1, 10**6, LEAST_REQUESTS - 1, 0, 10))
    assert advice.switches == ()
    assert "only 19 requests came" in advice.reason


@pytest.mark.parametrize("role", [Role.PREFILL, Role.DECODE])
def test_one_role_alone_is_not_divided(role: Role) -> None:
    assert recommend([worker(0, role), worker(1, role)], asked(1.0, 100, 10), Target()) is None


def test_workers_on_the_same_cores_slow_each_other() -> None:
    apart = advised(TWO_TWO, asked(1.0, 500, 50)).now
    together = advised([replace(one, node_id="n", shares_cores=True) for one in TWO_TWO], asked(1.0, 500, 50)).now
    assert together.prefill_busy > apart.prefill_busy
    assert together.time_per_output_token_s > apart.time_per_output_token_s


all_rates = st.sampled_from([RATES, replace(RATES, flops_per_s=4e12), replace(RATES, bytes_per_s=2e9)])
fleets = st.lists(st.tuples(st.sampled_from([Role.PREFILL, Role.DECODE]), all_rates, st.booleans()), max_size=8).map(
    lambda specs: [
        worker(number, role, rates, node_id="n" if shares else f"n{number}", shares_cores=shares)
        for number, (role, rates, shares) in enumerate(specs)
    ]
)
demands = st.builds(asked, st.floats(0.01, 200), st.integers(1, 4_000), st.integers(1, 1_000), st.just(0))
targets = st.builds(Target, st.floats(0.01, 5), st.floats(0.001, 1))


@settings(max_examples=300, deadline=None)
@given(fleets, demands, targets)
def test_advice_keeps_a_worker_of_each_role_is_better_and_comes_to_an_end(workers, demand, target) -> None:  # type: ignore[no-untyped-def]
    advice = recommend(workers, demand, target)
    if advice is None:
        assert len({one.role for one in workers}) < 2
        return
    everyone = sorted(one.worker_id for one in workers)
    for split in (advice.now, advice.best, *advice.splits):
        assert split.prefill_ids
        assert split.decode_ids
        assert sorted((*split.prefill_ids, *split.decode_ids)) == everyone
        assert split.prefill_busy >= 0.0
        assert split.decode_busy > 0.0
        assert not math.isnan(split.pressure)
    assert len(advice.splits) == len(workers) - 1
    assert bool(advice.switches) == (advice.best.name != advice.now.name)
    for _ in range(10):  # unlike chips may change places by way of a third split
        if not advice.switches:
            return
        assert advice.best.pressure < advice.now.pressure
        workers, before = applied(workers, advice), advice
        advice = advised(workers, demand, target)
        assert advice.now == before.best
    raise AssertionError("a fleet does not swing")


@settings(max_examples=200, deadline=None)
@given(fleets, demands, st.floats(1.1, 4))
def test_more_work_makes_nobody_less_busy(workers, demand, more) -> None:  # type: ignore[no-untyped-def]
    advice = recommend(workers, demand, Target())
    if advice is None:
        return
    busier = recommend(workers, demand._replace(seconds=demand.seconds / more), Target())
    assert busier is not None
    for before, after in zip(advice.splits, busier.splits, strict=True):
        assert after.prefill_busy >= before.prefill_busy * (1 - 1e-9)
        assert after.time_per_output_token_s >= before.time_per_output_token_s * (1 - 1e-9)
        assert after.time_to_first_token_s >= before.time_to_first_token_s * (1 - 1e-9)


events = st.lists(st.tuples(st.floats(0, 30), st.booleans(), st.integers(0, 2_000)), max_size=60)


@given(events)
def test_the_window_holds_what_came_within_a_minute(script) -> None:  # type: ignore[no-untyped-def]
    window, now_s, arrivals, answers = DemandWindow(0.0), 0.0, [], []
    for wait_s, is_arrival, tokens in script:
        now_s += wait_s
        if is_arrival:
            window.arrived(tokens, now_s)
            arrivals.append((now_s, tokens))
        else:
            window.answered(tokens // 2, tokens, now_s)
            answers.append((now_s, tokens))
        demand = window.demand(now_s)
        assert demand.seconds == min(now_s, WINDOW_S)
        for known, count, total in (
            (arrivals, demand.requests, demand.prompt_tokens),
            (answers, demand.answers, demand.output_tokens),
        ):
            least = [amount for at_s, amount in known if at_s > now_s - WINDOW_S + 5.0]
            most = [amount for at_s, amount in known if at_s > now_s - WINDOW_S - 5.0]
            assert len(least) <= count <= len(most)
            assert sum(least) <= total <= sum(most)


def test_what_several_routers_were_asked_is_added() -> None:
    both = Demand(60.0, 10, 1_000, 8, 80, 800).plus(Demand(30.0, 5, 100, 4, 0, 40))
    assert both == Demand(60.0, 15, 1_100, 12, 80, 840)
    assert (both.requests_per_s, both.tokens_per_prompt) == (0.25, 1_100 / 15)
    assert Demand().tokens_per_answer == Demand().requests_per_s == 0.0
