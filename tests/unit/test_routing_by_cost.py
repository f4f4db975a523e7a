"""Plans by predicted seconds, joules and money: what every one must be, and who wins where."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import NoWorkerError
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kv.tier import Tier
from forebay.role import Role
from forebay.routing.correction import Corrections, Phase
from forebay.routing.cost import ChipRates, LinkRates, ModelSize
from forebay.routing.fleet import FleetSnapshot, Worker
from forebay.routing.forecast import Conditions
from forebay.routing.in_flight import WorkerLoad
from forebay.routing.outlook import INTERLEAVED_TOKENS, MOST_SITES
from forebay.routing.plan import RESUME_MAX_TOKENS, Mode, Plan, PlanRequest, QosTier, Target, plan
from forebay.routing.prefix_index import PrefixMatch

LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=30, kv_heads=3, head_dim=64, block_tokens=32)
SIZE = ModelSize(parameters=100_000_000, weight_bytes=100_000_000, kv_token_bytes=23_040, layers=30, width=576)
# 0.5 ms a prompt token; 4 ms and little more a step
RATES = ChipRates(step_overhead_s=0.0, flops_per_s=4e11, bytes_per_s=2.5e10, watts=50.0, usd_per_hour=0.36)
FAST = dataclasses.replace(RATES, flops_per_s=4e12)


def worker(worker_id: str, role: Role, node_id: str, rates: ChipRates | None = RATES, **fields) -> Worker:  # type: ignore[no-untyped-def]
    options = {"max_sequences": 8, "chip_class": "c", "model_size": None if rates is None else SIZE, **fields}
    return Worker(worker_id, role, node_id, "digest", LAYOUT, rates=rates, **options)


def decode(worker_id: str, node_id: str = "n1", rates: ChipRates | None = RATES, **fields) -> Worker:  # type: ignore[no-untyped-def]
    return worker(worker_id, Role.DECODE, node_id, rates, **fields)


def prefill(worker_id: str, node_id: str = "n1", rates: ChipRates | None = RATES, **fields) -> Worker:  # type: ignore[no-untyped-def]
    return worker(worker_id, Role.PREFILL, node_id, rates, **fields)


def held(block_count: int) -> PrefixMatch:
    return PrefixMatch(block_count, frozenset({Tier.DEVICE}))


def made(request: PlanRequest, fleet: FleetSnapshot, matches=None, loads=None, tie_break=0.0, **conditions) -> Plan:  # type: ignore[no-untyped-def]
    return plan(request, fleet, matches or {}, loads or {}, tie_break, Conditions(**conditions))


nodes = st.sampled_from(["n1", "n2", "n3"])
all_rates = st.sampled_from([RATES, FAST, None, dataclasses.replace(RATES, usd_per_hour=1.0)])
members = st.lists(st.tuples(nodes, st.booleans(), all_rates, st.booleans()), max_size=4)


def fleet_of(prefills, decodes) -> FleetSnapshot:  # type: ignore[no-untyped-def]
    return FleetSnapshot(
        tuple(
            prefill(f"p{i}", node, rates, is_draining=drains, shares_cores=shares)
            for i, (node, drains, rates, shares) in enumerate(prefills)
        ),
        tuple(
            decode(f"d{i}", node, rates, is_draining=drains, shares_cores=shares)
            for i, (node, drains, rates, shares) in enumerate(decodes)
        ),
    )


fleets = st.builds(fleet_of, members, members).filter(lambda fleet: fleet.costs)
requests = st.builds(
    PlanRequest,
    prompt_tokens=st.integers(1, 3000),
    forced_mode=st.sampled_from([None, Mode.LOCAL, Mode.SPLIT]),
    alone_tokens=st.sampled_from([0, 64]),
    is_begun=st.booleans(),
    qos_tier=st.sampled_from(QosTier),
    output_tokens=st.integers(1, 500),
)
all_matches = st.dictionaries(nodes, st.integers(0, 100).map(held))
all_loads = st.dictionaries(
    st.sampled_from([f"{role}{i}" for role in "pd" for i in range(4)]),
    st.builds(WorkerLoad, st.integers(0, 20), st.integers(0, 3000), st.integers(0, 20_000)),
)
ties = st.floats(0, 1, exclude_max=True)


@settings(max_examples=500, deadline=None)
@given(requests, fleets, all_matches, all_loads, ties)
def test_every_plan_can_be_carried_out_and_is_no_worse_than_the_rejected_one(  # type: ignore[no-untyped-def]
    request, fleet, matches, loads, tie_break
) -> None:
    try:
        chosen = plan(request, fleet, matches, loads, tie_break)
    except NoWorkerError:
        live = [w for w in fleet.decode if not w.is_draining]
        if request.forced_mode is Mode.SPLIT and not request.is_begun:
            assert not live or all(w.is_draining for w in fleet.prefill)
        else:
            assert not live
        return
    by_id = {w.worker_id: w for w in (*fleet.prefill, *fleet.decode)}
    for one in filter(None, (chosen, chosen.rejected)):
        decoder = by_id[one.decode_worker_id]
        assert decoder.role is Role.DECODE
        assert not decoder.is_draining
        assert (one.prefill_worker_id is not None) == (one.mode is Mode.SPLIT)
        if one.prefill_worker_id is not None:
            assert by_id[one.prefill_worker_id].role is Role.PREFILL
            assert not by_id[one.prefill_worker_id].is_draining
        if request.is_begun:
            assert one.mode is not Mode.SPLIT
        elif request.forced_mode is not None:
            assert one.mode is request.forced_mode
        rest_tokens = request.prompt_tokens - one.matched_tokens
        assert one.matched_tokens % 32 == 0
        assert rest_tokens > 0, "the last token is always computed"
        assert one.mode is not Mode.RESUME or (one.matched_tokens > 0 and rest_tokens <= RESUME_MAX_TOKENS)
        figures = one.prediction
        assert figures is not None
        assert all(0.0 <= value < float("inf") for value in figures)
        assert figures.time_to_first_token_s >= figures.queue_s + figures.prefill_s
        assert one.reason.startswith(one.mode.value)
        assert "\n" not in one.reason
    if chosen.rejected is not None:
        assert (chosen.decode_worker_id, chosen.prefill_worker_id) != (
            chosen.rejected.decode_worker_id,
            chosen.rejected.prefill_worker_id,
        )
        if request.qos_tier is QosTier.BATCH:
            assert chosen.prediction.usd <= chosen.rejected.prediction.usd * 1.02
    assert chosen == plan(request, fleet, matches, loads, tie_break), "same input, same plan"


def test_where_no_rates_are_known_the_rule_of_thumb_decides() -> None:
    fleet = FleetSnapshot((prefill("p1", rates=None),), (decode("d1", rates=None),))
    chosen = made(PlanRequest(100), fleet)
    assert (chosen.mode, chosen.prediction, chosen.rejected) == (Mode.SPLIT, None, None)


def test_a_worker_without_rates_counts_as_its_class_or_as_the_slowest() -> None:
    fleet = FleetSnapshot(
        (prefill("p1", rates=FAST, chip_class="fast"), prefill("p2", rates=None, chip_class="fast")),
        (decode("d1"), decode("d2", rates=None, chip_class="strange")),
    )
    costs = {worker_id: cost.prefill_s(100, 0) for worker_id, cost in fleet.costs.items()}
    assert costs["p1"] == costs["p2"] < costs["d1"] == costs["d2"]


def test_figures_are_those_of_the_formulas() -> None:
    chosen = made(PlanRequest(1000, output_tokens=100), FleetSnapshot((), (decode("d1"),)))
    figures = chosen.prediction
    assert figures is not None
    # 2·10⁸·1,000 + 2·30·576·1,000² operations at 4·10¹¹ a second; weights and KV of 1,050 tokens at 2.5·10¹⁰
    assert figures.prefill_s == pytest.approx((2e11 + 34_560 * 1e6) / 4e11)
    assert figures.time_per_output_token_s == pytest.approx((1e8 + 23_040 * 1_050) / 2.5e10)
    busy_s = figures.prefill_s + 100 * figures.time_per_output_token_s
    assert figures.joules == pytest.approx(50 * busy_s)
    assert figures.usd == pytest.approx(1e-4 * busy_s)
    assert figures.time_to_first_token_s == pytest.approx(figures.prefill_s + Corrections().path_s(is_split=False))


def test_split_is_chosen_only_where_it_wins() -> None:
    # alike and idle: the hand-over is for nothing
    assert made(PlanRequest(500), FleetSnapshot((prefill("p1"),), (decode("d1"),))).mode is Mode.LOCAL
    # ten times the arithmetic at the same price
    assert made(PlanRequest(500), FleetSnapshot((prefill("p1", rates=FAST),), (decode("d1"),))).mode is Mode.SPLIT
    # the same at twenty times the price: LOCAL meets the target and is cheaper
    dear = dataclasses.replace(FAST, usd_per_hour=7.2)
    assert made(PlanRequest(500), FleetSnapshot((prefill("p1", rates=dear),), (decode("d1"),))).mode is Mode.LOCAL
    # but not when LOCAL would be late
    assert made(PlanRequest(2000), FleetSnapshot((prefill("p1", rates=dear),), (decode("d1"),))).mode is Mode.SPLIT
    # which BATCH does not mind
    batch = PlanRequest(2000, qos_tier=QosTier.BATCH)
    fleet = FleetSnapshot((prefill("p1", rates=dear),), (decode("d1"),))
    assert made(batch, fleet).mode is Mode.LOCAL
    # unless its deadline would be missed so
    local_s = made(batch, fleet).prediction.time_to_first_token_s
    hurried = dataclasses.replace(batch, output_tokens=1, deadline_s=local_s)
    chosen = made(hurried, fleet)
    assert chosen.mode is Mode.SPLIT
    assert "meets its deadline in" in chosen.reason
    assert made(dataclasses.replace(hurried, deadline_s=local_s + 1.0), fleet).mode is Mode.LOCAL


def test_split_does_not_win_by_a_hair() -> None:
    # cheaper by less than predictions are worth
    cheap = dataclasses.replace(RATES, usd_per_hour=RATES.usd_per_hour * 0.96)
    fleet = FleetSnapshot((prefill("p1", rates=cheap),), (decode("d1"),))
    for tie_break in (0.0, 0.9):
        chosen = made(PlanRequest(900, output_tokens=100), fleet, tie_break=tie_break)
        assert chosen.mode is Mode.LOCAL
        assert chosen.rejected is not None
        assert chosen.rejected.prediction.usd < chosen.prediction.usd


def test_what_is_held_is_not_handed_over() -> None:
    fleet = FleetSnapshot((prefill("p1", rates=FAST),), (decode("d1"),))
    assert made(PlanRequest(1000), fleet, {"n1": held(29)}).mode is Mode.SPLIT
    assert made(PlanRequest(1000), fleet, {"n1": held(31)}).mode is Mode.RESUME
    assert made(PlanRequest(1000, Mode.SPLIT), fleet, {"n1": held(31)}).mode is Mode.SPLIT


def test_a_busy_decode_worker_hands_the_prompt_over_when_it_would_be_late() -> None:
    fleet = FleetSnapshot((prefill("p1", "n1"),), (decode("d1", "n1"),))
    assert made(PlanRequest(700), fleet).mode is Mode.LOCAL
    loads = {"d1": WorkerLoad(4, 0, 12_000)}
    chunks = -(-700 // INTERLEAVED_TOKENS)
    chosen = made(PlanRequest(700), fleet, loads=loads)
    assert chosen.mode is Mode.SPLIT
    assert chosen.rejected is not None
    assert chosen.rejected.prediction is not None
    alone = chosen.rejected.prediction
    assert alone.prefill_s > 0.35 + chunks * 0.004, "chunks go between the others' steps"
    assert "meets 500 ms to the first token and 50 ms a token, LOCAL on d1 would miss it by 14%" in chosen.reason


def test_a_queue_sends_the_request_elsewhere() -> None:
    fleet = FleetSnapshot((), (decode("d1", "n1"), decode("d2", "n2")))
    loads = {"d1": WorkerLoad(1, 1_500, 1_500, queued_realtime_tokens=1_500)}
    chosen = made(PlanRequest(300), fleet, loads=loads)
    assert chosen.decode_worker_id == "d2"
    # and a cached prefix does not make up for it, since the target would be missed
    assert made(PlanRequest(300), fleet, {"n1": held(8)}, loads).decode_worker_id == "d2"
    # but it decides among those that are in time
    short = PlanRequest(300, output_tokens=10)
    assert made(short, fleet, {"n1": held(8)}, {"d2": WorkerLoad(1, 0, 100)}).decode_worker_id == "d1"


def test_realtime_waits_for_realtime_alone_and_batch_for_all() -> None:
    fleet = FleetSnapshot((), (decode("d1"),))
    loads = {"d1": WorkerLoad(2, 1_000, 1_000, queued_realtime_tokens=200)}
    urgent, batch = (
        made(PlanRequest(10, qos_tier=tier), fleet, loads=loads).prediction
        for tier in (QosTier.REALTIME, QosTier.BATCH)
    )
    assert urgent is not None
    assert batch is not None
    assert 0 < urgent.queue_s < batch.queue_s / 4


def test_a_queue_has_been_worked_on_since_it_was_seen() -> None:
    fleet = FleetSnapshot((), (decode("d1"),))

    def queue_s(now_s: float) -> float:
        loads = {"d1": WorkerLoad(1, 1_000, 1_000, seen_s=7.0, queued_realtime_tokens=1_000)}
        figures = made(PlanRequest(10), fleet, loads=loads, now_s=now_s).prediction
        assert figures is not None
        return figures.queue_s

    assert queue_s(7.0) == pytest.approx(0.5, rel=0.2)
    assert queue_s(7.1) == pytest.approx(queue_s(7.0) - 0.1)
    assert queue_s(9.0) == 0.0


def test_a_shared_step_is_cheaper_and_so_taken_until_a_token_takes_too_long() -> None:
    fleet = FleetSnapshot((), (decode("d1", "n1"), decode("d2", "n2")))
    assert made(PlanRequest(10), fleet, loads={"d1": WorkerLoad(3, 0, 3_000)}).decode_worker_id == "d1"
    slow = PlanRequest(10, target=Target(time_per_output_token_s=0.006))
    assert made(slow, fleet, loads={"d1": WorkerLoad(3, 0, 100_000)}).decode_worker_id == "d2"


def test_a_full_batch_is_waited_for_only_where_nothing_else_is() -> None:
    loads = {"d1": WorkerLoad(20, 0, 5_000)}
    one, two = (decode("d1", "n1"),), (decode("d1", "n1"), decode("d2", "n2"))
    waiting = made(PlanRequest(10), FleetSnapshot((), one), loads=loads).prediction
    assert waiting is not None
    assert waiting.time_to_first_token_s > 0.5
    assert waiting.batch == 8, "no more than fit into a step"
    assert made(PlanRequest(10), FleetSnapshot((), two), loads=loads).decode_worker_id == "d2"


def test_workers_on_the_same_cores_slow_each_other() -> None:
    def ttft(shares_cores: bool) -> float:
        fleet = FleetSnapshot((prefill("p1", shares_cores=shares_cores),), (decode("d1", shares_cores=shares_cores),))
        figures = made(PlanRequest(100, Mode.SPLIT), fleet, loads={"d1": WorkerLoad(1, 0, 100)}).prediction
        assert figures is not None
        return figures.prefill_s

    assert ttft(True) == pytest.approx(2 * ttft(False))


def test_a_slow_link_makes_split_across_nodes_lose() -> None:
    fleet = FleetSnapshot((prefill("p1", "n2", rates=FAST),), (decode("d1", "n1"),))
    request = PlanRequest(900)
    chosen = made(request, fleet, link=LinkRates(1e10, 0.0001))
    assert chosen.mode is Mode.SPLIT
    assert "its KV is brought" in chosen.reason
    assert made(request, fleet, link=LinkRates(1e7, 0.1)).mode is Mode.LOCAL


def test_equals_are_chosen_among_by_the_number_given() -> None:
    fleet = FleetSnapshot((), tuple(decode(f"d{i}", f"n{i}") for i in range(4)))
    chosen = {made(PlanRequest(10), fleet, tie_break=tie).decode_worker_id for tie in (0.0, 0.3, 0.6, 0.9)}
    assert chosen == {"d0", "d1", "d2", "d3"}


def test_corrections_change_who_wins() -> None:
    fleet = FleetSnapshot((), (decode("d1", "n1"), decode("d2", "n2")))
    corrections = Corrections()
    for _ in range(30):
        corrections.learn("d1", Phase.PREFILL, 300, 2.0)
    for tie_break in (0.0, 0.9):
        chosen = made(PlanRequest(300), fleet, tie_break=tie_break, corrections=corrections)
        assert chosen.decode_worker_id == "d2"
    assert chosen.prediction is not None
    assert chosen.prediction.prefill_factor == 1.0


def test_where_predictions_are_wrong_the_sooner_is_taken_though_another_would_be_cheaper_in_time() -> None:
    cheap, dear = decode("d1", "n1"), decode("d2", "n2", dataclasses.replace(FAST, usd_per_hour=10.0))
    fleet, corrections = FleetSnapshot((), (cheap, dear)), Corrections()
    asked = PlanRequest(600)  # some 340 ms on the cheap one
    assert made(asked, fleet, corrections=corrections).decode_worker_id == "d1"
    for _ in range(40):
        corrections.first_token.take(1.6)
    chosen = made(asked, fleet, corrections=corrections)
    assert chosen.decode_worker_id == "d2"
    assert (
        "meets 500 ms to the first token and 50 ms a token at 2.1 and 1 times the prediction,"
        " LOCAL on d1 would miss it by"
    ) in chosen.reason
    batch = made(dataclasses.replace(asked, qos_tier=QosTier.BATCH), fleet, corrections=corrections)
    assert batch.decode_worker_id == "d1"


@settings(max_examples=20, deadline=None)
@given(ties)
def test_of_a_large_fleet_those_that_hold_the_prompt_are_looked_at_and_others_by_chance(tie_break: float) -> None:
    fleet = FleetSnapshot((), tuple(decode(f"d{i:03}", f"n{i:03}") for i in range(300)))
    chosen = made(PlanRequest(900), fleet, {"n217": held(20), "n100": held(3)}, tie_break=tie_break)
    assert (chosen.decode_worker_id, chosen.matched_tokens) == ("d217", 640)
    assert f"; {MOST_SITES} options" in chosen.reason


def test_over_time_all_of_a_large_fleet_are_chosen() -> None:
    fleet = FleetSnapshot((), tuple(decode(f"d{i:03}", f"n{i:03}") for i in range(300)))
    chosen = {made(PlanRequest(900), fleet, tie_break=i * 0.618034 % 1).decode_worker_id for i in range(2000)}
    assert len(chosen) == 300


def test_the_reason_reads_like_a_sentence() -> None:
    fleet = FleetSnapshot((prefill("p1", rates=FAST),), (decode("d1"),))
    chosen = made(PlanRequest(1000), fleet, {"n1": held(10)})
    assert chosen.reason == (
        "SPLIT: 320 of 1000 prompt tokens are cached on n1; prefill worker p1 computes the rest in 41.8 ms;"
        " d1 takes 4.98 ms a token with 1 sequence; first token after 46.8 ms, 34.2 J, 6.83e-05 USD;"
        " meets 500 ms to the first token and 50 ms a token as does LOCAL on d1 at 0.000106 USD and 423 ms to the"
        " first token; 2 options."
    )
