"""What every plan must be, and the first policy: longest cached prefix, then least load."""

import dataclasses

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from forebay.errors import NoWorkerError
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kv.tier import Tier
from forebay.role import Role
from forebay.routing.fleet import FleetSnapshot, NodeCache, Worker, select
from forebay.routing.in_flight import ON_ITS_WAY_S, InFlight, WorkerLoad
from forebay.routing.plan import RESUME_MAX_TOKENS, Mode, Plan, PlanRequest, plan
from forebay.routing.prefix_index import PrefixMatch

LAYOUT = KvLayout(KvDtype.FLOAT32, layers=1, kv_heads=1, head_dim=4, block_tokens=32)
OTHER_LAYOUT = dataclasses.replace(LAYOUT, dtype=KvDtype.INT8)


def worker(worker_id: str, role: Role, node_id: str = "n1", **fields) -> Worker:  # type: ignore[no-untyped-def]
    return Worker(worker_id, role, node_id, "digest", LAYOUT, max_sequences=8, **fields)


def decode(worker_id: str, node_id: str = "n1", **fields) -> Worker:  # type: ignore[no-untyped-def]
    return worker(worker_id, Role.DECODE, node_id, **fields)


def prefill(worker_id: str, node_id: str = "n1", **fields) -> Worker:  # type: ignore[no-untyped-def]
    return worker(worker_id, Role.PREFILL, node_id, **fields)


def held(block_count: int) -> PrefixMatch:
    return PrefixMatch(block_count, frozenset({Tier.DEVICE}))


def made(request: PlanRequest, fleet: FleetSnapshot, matches=None, loads=None, tie_break: float = 0.0) -> Plan:  # type: ignore[no-untyped-def]
    return plan(request, fleet, matches or {}, loads or {}, tie_break)


nodes = st.sampled_from(["n1", "n2", "n3"])
fleets = st.builds(
    lambda p, d: FleetSnapshot(
        tuple(prefill(f"p{i}", node, is_draining=drains) for i, (node, drains) in enumerate(p)),
        tuple(decode(f"d{i}", node, is_draining=drains) for i, (node, drains) in enumerate(d)),
    ),
    st.lists(st.tuples(nodes, st.booleans()), max_size=4),
    st.lists(st.tuples(nodes, st.booleans()), max_size=4),
)
requests = st.builds(
    PlanRequest,
    prompt_tokens=st.integers(1, 300),
    forced_mode=st.sampled_from([None, Mode.LOCAL, Mode.SPLIT]),
    alone_tokens=st.sampled_from([0, 32, 64, 100]),
    is_begun=st.booleans(),
)
all_matches = st.dictionaries(nodes, st.integers(0, 12).map(held))
all_loads = st.dictionaries(
    st.sampled_from([f"{role}{i}" for role in "pd" for i in range(4)]),
    st.builds(WorkerLoad, st.integers(0, 20), st.integers(0, 1000)),
)
ties = st.floats(0, 1, exclude_max=True)


@settings(max_examples=1_000, deadline=None)
@given(requests, fleets, all_matches, all_loads, ties)
def test_every_plan_can_be_carried_out(request, fleet, matches, loads, tie_break) -> None:  # type: ignore[no-untyped-def]
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
    decoder = by_id[chosen.decode_worker_id]
    assert decoder.role is Role.DECODE
    assert not decoder.is_draining
    assert (chosen.prefill_worker_id is not None) == (chosen.mode is Mode.SPLIT)
    if chosen.prefill_worker_id is not None:
        prefiller = by_id[chosen.prefill_worker_id]
        assert prefiller.role is Role.PREFILL
        assert not prefiller.is_draining
        on_node = any(w.node_id == decoder.node_id and not w.is_draining for w in fleet.prefill)
        assert (prefiller.node_id == decoder.node_id) == on_node, "another node's only where the node has none"
    if request.is_begun:
        assert chosen.mode is not Mode.SPLIT, "a prefill worker would generate the first token again"
    elif request.forced_mode is not None:
        assert chosen.mode is request.forced_mode
    match = matches.get(decoder.node_id, held(0))
    assert chosen.matched_tokens % 32 == 0
    assert chosen.matched_tokens < request.prompt_tokens, "the last token is always computed"
    assert chosen.matched_tokens <= match.block_count * 32
    rest_tokens = request.prompt_tokens - chosen.matched_tokens
    if chosen.mode is Mode.RESUME:
        assert chosen.matched_tokens > 0
        assert rest_tokens <= RESUME_MAX_TOKENS
    if chosen.mode is Mode.SPLIT and request.forced_mode is None:
        assert rest_tokens > request.alone_tokens
    assert chosen.reason.startswith(chosen.mode.value)
    assert chosen == plan(request, fleet, matches, loads, tie_break), "same input, same plan"


@given(requests, fleets, all_matches, all_loads, ties)
def test_no_decode_worker_that_could_serve_holds_more(request, fleet, matches, loads, tie_break) -> None:  # type: ignore[no-untyped-def]
    assume(request.forced_mode is not Mode.SPLIT)
    assume(any(not w.is_draining for w in fleet.decode))
    chosen = plan(request, fleet, matches, loads, tie_break)
    usable = (request.prompt_tokens - 1) // 32
    best = max(min(usable, matches.get(w.node_id, held(0)).block_count) for w in fleet.decode if not w.is_draining)
    assert chosen.matched_tokens == best * 32


def test_the_least_loaded_of_equals_is_taken() -> None:
    fleet = FleetSnapshot((prefill("p1"), prefill("p2")), (decode("d1"), decode("d2")))
    loads = {"d1": WorkerLoad(2, 0), "d2": WorkerLoad(1, 0), "p1": WorkerLoad(1, 10), "p2": WorkerLoad(1, 500)}
    chosen = made(PlanRequest(100), fleet, loads=loads)
    assert (chosen.mode, chosen.prefill_worker_id, chosen.decode_worker_id) == (Mode.SPLIT, "p1", "d2")


def test_load_is_relative_to_what_a_worker_can_hold() -> None:
    big = dataclasses.replace(decode("d1"), max_sequences=64)
    fleet = FleetSnapshot((), (big, decode("d2")))
    chosen = made(PlanRequest(10), fleet, loads={"d1": WorkerLoad(8, 0), "d2": WorkerLoad(4, 0)})
    assert chosen.decode_worker_id == "d1"


@pytest.mark.parametrize(("tie_break", "expected"), [(0.0, "d0"), (0.3, "d1"), (0.5, "d2"), (0.999, "d3")])
def test_ties_are_broken_by_the_number_given(tie_break: float, expected: str) -> None:
    fleet = FleetSnapshot((), tuple(decode(f"d{i}") for i in range(4)))
    assert made(PlanRequest(10), fleet, tie_break=tie_break).decode_worker_id == expected


@pytest.mark.parametrize(
    ("prompt_tokens", "blocks", "mode"),
    [
        (33, 1, Mode.RESUME),  # the last block is partial
        (64, 2, Mode.RESUME),  # all blocks are full: the last is computed again
        (65, 1, Mode.LOCAL),  # a full block is missing, but little in all
        (96, 1, Mode.LOCAL),
        (97, 1, Mode.SPLIT),  # more than the decode worker computes alone
        (32, 1, Mode.LOCAL),  # nothing can be reused
        (64, 0, Mode.LOCAL),
        (65, 0, Mode.SPLIT),
    ],
)
def test_the_mode_follows_from_the_cache_and_from_what_is_left(prompt_tokens: int, blocks: int, mode: Mode) -> None:
    fleet = FleetSnapshot((prefill("p1"),), (decode("d1"),))
    assert made(PlanRequest(prompt_tokens), fleet, {"n1": held(blocks)}).mode is mode


@pytest.mark.parametrize(
    ("prompt_tokens", "blocks", "mode"),
    [(64, 2, Mode.RESUME), (65, 1, Mode.SPLIT), (32, 1, Mode.SPLIT), (10, 0, Mode.SPLIT)],
)
def test_a_router_may_leave_no_prompt_to_decode_workers(prompt_tokens: int, blocks: int, mode: Mode) -> None:
    fleet = FleetSnapshot((prefill("p1"),), (decode("d1"),))
    assert made(PlanRequest(prompt_tokens, alone_tokens=0), fleet, {"n1": held(blocks)}).mode is mode


def test_resume_only_when_little_is_left() -> None:
    wide = dataclasses.replace(LAYOUT, block_tokens=128)
    fleet = FleetSnapshot(
        (dataclasses.replace(prefill("p1"), layout=wide),), (dataclasses.replace(decode("d1"), layout=wide),)
    )
    assert made(PlanRequest(128 + 64), fleet, {"n1": held(1)}).mode is Mode.RESUME
    assert made(PlanRequest(128 + 65), fleet, {"n1": held(1)}).mode is Mode.SPLIT


@pytest.mark.parametrize(
    "stranger",
    [
        dataclasses.replace(prefill("p1"), model_digest="other"),
        dataclasses.replace(prefill("p1"), layout=OTHER_LAYOUT),
        prefill("p1", is_draining=True),
    ],
)
def test_a_prefill_worker_that_cannot_share_blocks_is_no_partner(stranger: Worker) -> None:
    fleet = FleetSnapshot((stranger,), (decode("d1"),))
    assert made(PlanRequest(100), fleet).mode is Mode.LOCAL
    with pytest.raises(NoWorkerError) as caught:
        made(PlanRequest(100, Mode.SPLIT), fleet)
    assert caught.value.metadata["role"] == "prefill"
    assert caught.value.retry_after_s == 1.0


@pytest.mark.parametrize("forced_mode", [None, Mode.SPLIT])
def test_a_node_without_prefill_worker_uses_one_of_another_node(forced_mode: Mode | None) -> None:
    unlike = dataclasses.replace(LAYOUT, dtype=KvDtype.INT8, block_tokens=16)
    fleet = FleetSnapshot((prefill("p1", "n2"),), (dataclasses.replace(decode("d1"), layout=unlike),))
    chosen = made(PlanRequest(100, forced_mode), fleet)
    assert (chosen.mode, chosen.prefill_worker_id, chosen.decode_worker_id) == (Mode.SPLIT, "p1", "d1")
    assert "a prefill worker of node n2 computes the rest, and its KV is brought" in chosen.reason


def test_of_equals_the_decode_worker_beside_a_prefill_worker_is_taken() -> None:
    fleet = FleetSnapshot((prefill("p1", "n2"),), (decode("d1", "n1"), decode("d2", "n2")))
    assert made(PlanRequest(100), fleet).decode_worker_id == "d2"
    assert made(PlanRequest(100), fleet, loads={"d2": WorkerLoad(1, 0)}).decode_worker_id == "d1"


def test_what_cannot_be_converted_is_refused_when_planning_and_the_reason_says_why() -> None:
    other = dataclasses.replace(LAYOUT, block_tokens=24)
    fleet = FleetSnapshot((dataclasses.replace(prefill("p1", "n2"), layout=other),), (decode("d1"),))
    chosen = made(PlanRequest(100), fleet)
    assert chosen.mode is Mode.LOCAL
    assert "block_tokens 24 and 32" in chosen.reason
    with pytest.raises(NoWorkerError, match="block_tokens 24 and 32"):
        made(PlanRequest(100, Mode.SPLIT), fleet)


def test_the_reason_says_what_decided() -> None:
    fleet = FleetSnapshot((prefill("p1"),), (decode("d1"), decode("d2", "n2")))
    text = made(PlanRequest(100), fleet, {"n1": held(2)}).reason
    assert "64 of 100 prompt tokens are cached on n1" in text
    assert "2 options" in text
    assert "as was asked for" in made(PlanRequest(100, Mode.LOCAL), fleet).reason
    assert "too little" in text
    assert "no prefill worker" in made(PlanRequest(100), FleetSnapshot((), (decode("d1"),))).reason


def test_a_burst_between_two_reports_spreads() -> None:
    fleet, in_flight = FleetSnapshot((), tuple(decode(f"d{i}") for i in range(4))), InFlight()
    reported = {f"d{i}": WorkerLoad() for i in range(4)}
    for number in range(40):
        loads = {worker_id: in_flight.load(worker_id, load, 7.0) for worker_id, load in reported.items()}
        chosen = plan(PlanRequest(10), fleet, {}, loads, 0.0)
        in_flight.charge(chosen.decode_worker_id, f"r{number}", WorkerLoad(1, 10), 7.0)
    assert [in_flight.unseen(f"d{i}", 7.0) for i in range(4)] == [WorkerLoad(10, 100)] * 4


def test_a_charge_counts_until_a_report_must_have_seen_it() -> None:
    in_flight = InFlight()
    in_flight.charge("d1", "r1", WorkerLoad(1, 50), now_s=3.0)
    in_flight.charge("d1", "r2", WorkerLoad(1, 70), now_s=4.0)
    assert in_flight.unseen("d1", 3.0 + ON_ITS_WAY_S / 2) == WorkerLoad(2, 120), "it was on its way"
    assert in_flight.unseen("d1", 4.0) == WorkerLoad(1, 70)
    assert in_flight.unseen("d1", 4.0 + ON_ITS_WAY_S) == WorkerLoad()
    assert in_flight.load("d1", WorkerLoad(5, 0, 9), 4.0) == WorkerLoad(6, 70, 9)
    for request_id in ("r2", "r2", "r1"):
        in_flight.release("d1", request_id, reported_s=2.0, now_s=5.0)
    assert in_flight.load("d1", WorkerLoad(), 2.0) == WorkerLoad()


def test_a_charge_that_changes_is_as_well_known_as_before() -> None:
    in_flight = InFlight()
    in_flight.charge("d1", "r1", WorkerLoad(1, 500), now_s=3.0)
    in_flight.charge("d1", "r1", WorkerLoad(1, 0, 500), now_s=4.0)
    assert in_flight.unseen("d1", 2.0) == WorkerLoad(1, 0, 500)
    assert in_flight.unseen("d1", 3.5) == WorkerLoad()


def test_what_has_ended_is_taken_from_reports_that_contain_it() -> None:
    in_flight, reported = InFlight(), WorkerLoad(2, 0, 700)
    in_flight.charge("d1", "r1", WorkerLoad(1, 0, 500), now_s=3.0)
    in_flight.release("d1", "r1", reported_s=2.0, now_s=4.0)
    assert in_flight.load("d1", reported, 2.0) == reported, "no report came between"
    in_flight.charge("d1", "r2", WorkerLoad(1, 0, 500), now_s=3.0)
    in_flight.release("d1", "r2", reported_s=3.5, now_s=4.0)
    assert in_flight.load("d1", reported, 3.5) == WorkerLoad(1, 0, 200)
    assert in_flight.load("d1", WorkerLoad(), 4.0) == WorkerLoad(), "on its way, and never less than nothing"
    assert in_flight.load("d1", reported, 4.0 + ON_ITS_WAY_S) == reported


def test_select_refuses_what_differs_from_its_node_or_the_fleet() -> None:
    caches = [NodeCache("n1", "digest", LAYOUT), NodeCache("n2", "digest", LAYOUT), NodeCache("n3", "odd", LAYOUT)]
    workers = [
        decode("good"),
        prefill("good-p", "n2"),
        dataclasses.replace(decode("digest"), model_digest="odd"),
        decode("cache", "n3"),
        dataclasses.replace(decode("layout"), layout=OTHER_LAYOUT),
        decode("homeless", "n9"),
    ]
    snapshot, refusals = select(workers, caches)
    assert [w.worker_id for w in snapshot.decode] == ["good"]
    assert [w.worker_id for w in snapshot.prefill] == ["good-p"]
    reasons = {refusal.worker_id: refusal.reason for refusal in refusals}
    assert set(reasons) == {"digest", "cache", "layout", "homeless"}
    assert "fleet" in reasons["digest"]
    assert "KV layout" in reasons["layout"]
    assert "no KV-cache service" in reasons["homeless"]
    assert "node's KV-cache" in reasons["cache"]


def test_select_of_nothing_is_nothing() -> None:
    assert select([], []) == (FleetSnapshot(), ())
