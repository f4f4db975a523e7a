"""Why a request was planned as it was: told with its plan, on its span, and afterwards."""

import dataclasses

import pytest

from forebay.errors import UnknownRequestError
from forebay.router.explanations import Explanations
from forebay.routing.cost import ChipRates, ModelSize
from forebay.routing.plan import Mode, Plan
from forebay.rpc.status import translated
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.v1 import common_pb2, router_pb2

SIZE = ModelSize(parameters=1_000, weight_bytes=1_000, kv_token_bytes=64, layers=2, width=4)
RATES = ChipRates(step_overhead_s=0.0, flops_per_s=1e6, bytes_per_s=1e6, watts=10.0, usd_per_hour=3.6)
FAST = dataclasses.replace(RATES, flops_per_s=1e8)


def priced(fleet: ScriptedFleet) -> None:
    """From now on its prefill worker computes a hundred times as fast as its decode worker."""
    for worker_id, rates in (("prefill-1", FAST), ("decode-1", RATES)):
        fleet.members[worker_id] = dataclasses.replace(fleet.members[worker_id], model_size=SIZE, rates=rates)


async def started(router, **fields) -> router_pb2.Started:  # type: ignore[no-untyped-def]
    call = router.stub.Generate(router_pb2.GenerateRequest(**fields), timeout=20)
    events = [event async for event in call]
    return events[0].started


async def explained(router, request_id: str) -> router_pb2.ExplainRequestResponse:  # type: ignore[no-untyped-def]
    with translated():
        return await router.stub.ExplainRequest(router_pb2.ExplainRequestRequest(request_id=request_id), timeout=5)


async def test_a_plan_tells_its_figures_and_what_it_was_preferred_to(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet:
        priced(fleet)
        async with router_for(fleet) as router:
            begun = await started(router, request_id="r", text="what is it")
            answer = await explained(router, "r")
    assert answer.chosen == begun.plan
    assert answer.chosen.mode == common_pb2.EXECUTION_MODE_SPLIT
    assert answer.chosen.prediction.time_to_first_token_s > answer.chosen.prediction.prefill_s > 0
    assert answer.chosen.prediction.cost_usd == pytest.approx(answer.chosen.prediction.energy_joules / 1e4)
    # LOCAL is no option where a router leaves no prompt to decode workers
    assert not answer.HasField("rejected")


async def test_without_rates_there_are_no_figures(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        await started(router, request_id="r", text="what is it")
        answer = await explained(router, "r")
    assert not answer.chosen.HasField("prediction")
    assert "a prefill worker computes the rest" in answer.chosen.reason


async def test_a_request_that_is_not_known_is_told_apart(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        with pytest.raises(UnknownRequestError) as caught:
            await explained(router, "nobody")
    assert caught.value.field == "request_id"


def test_only_the_last_requests_are_kept() -> None:
    explanations = Explanations(capacity=3)
    plans = [Plan(Mode.LOCAL, f"d{i}", None, 0, "why") for i in range(6)]
    for number, plan in enumerate(plans[:4]):
        explanations.keep(f"r{number}", plan)
    explanations.keep("r1", plans[4])  # planned again: it is the latest now
    explanations.keep("r4", plans[5])
    assert [explanations.of(request_id) for request_id in ("r3", "r1", "r4")] == [plans[3], plans[4], plans[5]]
    for request_id in ("r0", "r2"):
        with pytest.raises(UnknownRequestError):
            explanations.of(request_id)
