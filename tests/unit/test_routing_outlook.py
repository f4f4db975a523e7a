"""Planning all workers at once comes to exactly what planning one after the other does."""

import dataclasses

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
from forebay.routing.option import Mode, PlanRequest, QosTier, Target
from forebay.routing.plan import Plan, plan
from forebay.routing.prefix_index import PrefixMatch
from forebay.testing.plain_plan import Forecast, plain_choice

LAYOUTS = [KvLayout(KvDtype.BFLOAT16, layers=30, kv_heads=3, head_dim=64, block_tokens=size) for size in (16, 32)]
SIZE = ModelSize(parameters=100_000_000, weight_bytes=100_000_000, kv_token_bytes=23_040, layers=30, width=576)
RATES = ChipRates(step_overhead_s=3e-4, flops_per_s=4e11, bytes_per_s=2.5e10, watts=50.0, usd_per_hour=0.36)
all_rates = st.sampled_from(
    [
        None,
        RATES,
        dataclasses.replace(RATES, flops_per_s=4e12),
        dataclasses.replace(RATES, usd_per_hour=1.0, bytes_per_s=1e11),
        dataclasses.replace(RATES, watts=0.0, usd_per_hour=0.0),
    ]
)
node_ids = ["n0", "n1", "n2", "n3"]
worker_ids = [f"{role.value}{number}" for role in (Role.PREFILL, Role.DECODE) for number in range(6)]


@st.composite
def fleets(draw) -> FleetSnapshot:  # type: ignore[no-untyped-def]
    layouts = {node_id: draw(st.sampled_from(LAYOUTS)) for node_id in node_ids}

    def worker(role: Role, number: int) -> Worker:
        node_id, rates = draw(st.sampled_from(node_ids)), draw(all_rates)
        return Worker(
            f"{role.value}{number}",
            role,
            node_id,
            "digest",
            layouts[node_id],
            max_sequences=draw(st.sampled_from([0, 1, 8])),
            is_draining=draw(st.integers(0, 9)) == 0,
            shares_cores=draw(st.booleans()),
            model_size=None if rates is None else SIZE,
            rates=rates,
        )

    def all_of(role: Role) -> tuple[Worker, ...]:
        return tuple(worker(role, number) for number in range(draw(st.integers(0, 6))))

    return FleetSnapshot(all_of(Role.PREFILL), all_of(Role.DECODE))


worker_loads = st.builds(
    WorkerLoad,
    st.integers(0, 12),
    st.sampled_from([0, 0, 40, 700]),
    st.integers(0, 20_000),
    st.floats(0, 2),
    st.sampled_from([0, 0, 40]),
)
requests = st.builds(
    PlanRequest,
    prompt_tokens=st.integers(1, 3000),
    forced_mode=st.sampled_from([None, None, Mode.LOCAL, Mode.SPLIT]),
    alone_tokens=st.sampled_from([0, 64]),
    is_begun=st.booleans(),
    qos_tier=st.sampled_from(QosTier),
    output_tokens=st.integers(1, 500),
    target=st.sampled_from([Target(), Target(0.02, 0.006)]),
    deadline_s=st.sampled_from([float("inf"), 0.0, 1.0]),
)
matches_of_nodes = st.dictionaries(
    st.sampled_from([*node_ids, "elsewhere"]),
    st.integers(0, 100).map(lambda count: PrefixMatch(count, frozenset({Tier.DEVICE}))),
)
lessons = st.tuples(
    st.sampled_from(worker_ids), st.sampled_from(Phase), st.sampled_from([1, 3, 500, 3_000]), st.floats(0.1, 10)
)
steps = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(worker_ids), st.one_of(st.none(), worker_loads), max_size=4),
        st.lists(lessons, max_size=3),
        st.frozensets(st.sampled_from(worker_ids), max_size=2),  # forgotten
        requests,
        matches_of_nodes,
    ),
    min_size=1,
    max_size=5,
)


def same(ours: Plan | None, plain: Forecast | None) -> bool:
    if ours is None or plain is None:
        return ours is plain
    return (ours.decode_worker_id, ours.prefill_worker_id, ours.matched_tokens, ours.prediction) == (
        plain.decoding.worker.worker_id,
        plain.computing.worker.worker_id if plain.is_split else None,
        plain.decoding.held.tokens,
        plain.prediction,
    )


@settings(max_examples=600, deadline=None)
@given(fleets().filter(lambda fleet: fleet.costs), steps, st.floats(0, 1, exclude_max=True), st.floats(0, 3))
def test_plans_are_those_of_plain_code_whatever_was_before(fleet, steps, tie_break, now_s) -> None:  # type: ignore[no-untyped-def]
    corrections, loads = Corrections(), {}
    conditions = Conditions(corrections, LinkRates(1e9, 0.001), now_s)
    for changed, learned, forgotten, request, matches in steps:
        loads.update(changed)
        loads = {worker_id: load for worker_id, load in loads.items() if load is not None}
        corrections.keep(set(worker_ids) - forgotten)
        for lesson in learned:
            corrections.learn(*lesson)
            corrections.first_token.take(lesson[3])
            corrections.token.take(1.0 + lesson[3] / 10)
        expected = plain_choice(request, fleet, matches, loads, conditions, tie_break)
        try:
            chosen = plan(request, fleet, matches, loads, tie_break, conditions)
        except NoWorkerError:
            assert expected is None
            continue
        assert expected is not None
        best, next_best, count = expected
        assert same(chosen, best)
        assert same(chosen.rejected, next_best)
        assert next_best is None or f"; {count} options" in chosen.reason
