"""Workers of a real mesh tell what they reach, and plans carry figures: with the answer, on the span, afterwards."""

import asyncio

from forebay.client import Client, Completion
from forebay.telemetry import spans
from forebay.testing.mesh import RunningMesh
from forebay.testing.prompts import LONG_PROMPTS
from forebay.testing.traces import stored_trace
from forebay.testing.waiting import eventually


async def predicted(client: Client) -> Completion:
    """A request that was planned by rates, which workers tell when they have measured or taken some steps."""
    answers: list[Completion] = []

    async def has_prediction() -> bool:
        number = len(answers)
        answers.append(
            await asyncio.to_thread(
                client.generate, LONG_PROMPTS[0], max_tokens=16, temperature=0, cache_salt=f"predicted-{number}"
            )
        )
        return answers[-1].plan.prediction is not None

    await eventually(has_prediction, timeout_s=60)
    return answers[-1]


async def test_a_plan_by_rates_is_told_on_its_span_and_afterwards(mesh: RunningMesh, client: Client) -> None:
    answer = await predicted(client)
    figures = answer.plan.prediction
    assert figures is not None
    assert 0 < figures.prefill_s < figures.time_to_first_token_s
    assert figures.energy_joules > 0
    assert figures.cost_usd > 0
    explanation = await asyncio.to_thread(client.explain, answer.request_id)
    assert explanation.chosen == answer.plan
    assert explanation.rejected is not None, "another mode, with one worker of each role"
    assert explanation.rejected.mode is not answer.plan.mode
    trace = await stored_trace(mesh, answer.trace_id, {spans.PLAN})
    attributes = next(one for one in trace if one.name == spans.PLAN).attributes
    assert attributes[spans.PLAN_TTFT_S] == figures.time_to_first_token_s
    assert attributes[spans.PLAN_TPOT_S] == figures.time_per_output_token_s
    assert attributes[spans.PLAN_ENERGY_JOULES] == figures.energy_joules
    assert attributes[spans.PLAN_COST_USD] == figures.cost_usd
    assert attributes[spans.PLAN_REJECTED] == explanation.rejected.reason
