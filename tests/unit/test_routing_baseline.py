"""The other policies do what their names say."""

from collections import Counter

import pytest

from forebay.kv.layout import KvDtype, KvLayout
from forebay.kv.tier import Tier
from forebay.role import Role
from forebay.routing.baseline import Policy, planning_by
from forebay.routing.cost import ChipRates, ModelSize
from forebay.routing.fleet import FleetSnapshot, Worker
from forebay.routing.in_flight import WorkerLoad
from forebay.routing.plan import Mode, PlanRequest, plan
from forebay.routing.prefix_index import PrefixIndex, PrefixMatch

LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=30, kv_heads=3, head_dim=64)
SIZE = ModelSize(106_168_320, 96_576_768, 23_040, 30, 576)
RATES = ChipRates(3e-4, 4e11, 2e10, 60.0, 0.1)
PROMPT = 1_000


def worker(name: str, role: Role, node_id: str) -> Worker:
    return Worker(name, role, node_id, "digest", LAYOUT, 8, model_size=SIZE, rates=RATES)


FLEET = FleetSnapshot(
    (worker("p1", Role.PREFILL, "a"), worker("p2", Role.PREFILL, "b")),
    (worker("d1", Role.DECODE, "a"), worker("d2", Role.DECODE, "b")),
)


def matches_on(node_id: str, blocks: int) -> dict[str, PrefixMatch]:
    index = PrefixIndex(capacity=100)
    hashes = [bytes([number]) * 16 for number in range(blocks)]
    index.store(node_id, Tier.DEVICE, hashes)
    return dict(index.match(hashes))


def test_cost_is_plan() -> None:
    assert planning_by(Policy.COST) is plan


def test_round_robin_takes_turns() -> None:
    planning = planning_by(Policy.ROUND_ROBIN)
    chosen = [planning(PlanRequest(PROMPT), FLEET, {}, {}, 0.0).decode_worker_id for _ in range(10)]
    assert Counter(chosen) == {"d1": 5, "d2": 5}


def test_least_load_looks_at_load_alone() -> None:
    loads = {"d1": WorkerLoad(sequences=3), "d2": WorkerLoad(sequences=1)}
    chosen = planning_by(Policy.LEAST_LOAD)(PlanRequest(PROMPT), FLEET, matches_on("a", 20), loads, 0.5)
    assert chosen.decode_worker_id == "d2"


def test_prefix_looks_at_the_cache_alone() -> None:
    loads = {"d1": WorkerLoad(sequences=3), "d2": WorkerLoad(sequences=1)}
    chosen = planning_by(Policy.PREFIX)(PlanRequest(PROMPT), FLEET, matches_on("a", 20), loads, 0.5)
    assert chosen.decode_worker_id == "d1"


@pytest.mark.parametrize(("policy", "mode"), [(Policy.ALWAYS_SPLIT, Mode.SPLIT), (Policy.ALWAYS_LOCAL, Mode.LOCAL)])
def test_one_mode_always_where_that_is_possible(policy: Policy, mode: Mode) -> None:
    planning = planning_by(policy)
    for prompt_tokens in (20, PROMPT):
        assert planning(PlanRequest(prompt_tokens), FLEET, {}, {}, 0.5).mode is mode
    assert planning(PlanRequest(PROMPT), FleetSnapshot((), FLEET.decode), {}, {}, 0.5).mode is Mode.LOCAL
    assert planning(PlanRequest(PROMPT, is_begun=True), FLEET, {}, {}, 0.5).mode is not Mode.SPLIT
