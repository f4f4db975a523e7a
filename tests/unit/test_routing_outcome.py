"""Which corrections follow from how a request went."""

import dataclasses

import pytest

from forebay.routing.correction import DEFAULT_PATH_S, Corrections, Phase
from forebay.routing.forecast import Prediction
from forebay.routing.outcome import LEAST_STEPS, Outcome, learn
from forebay.routing.plan import Mode, Plan

# corrected already: prefill by 2, decode by 0.5
PREDICTED = Prediction(
    queue_s=0.0,
    prefill_s=0.2,
    transfer_s=0.0,
    time_to_first_token_s=0.205,
    time_per_output_token_s=0.01,
    joules=1.0,
    usd=1.0,
    batch=3,
    prefill_factor=2.0,
    decode_factor=0.5,
)
SPLIT = Plan(Mode.SPLIT, "d", "p", 32, "why", PREDICTED)
LOCAL = dataclasses.replace(SPLIT, mode=Mode.LOCAL, prefill_worker_id=None)
WENT = Outcome(
    prompt_tokens=132,
    computed_tokens=100,
    queue_s=0.01,
    prefill_s=0.15,
    decode_s=0.6,
    decode_steps=20,
    time_to_first_token_s=0.175,
)


def learned(plan: Plan, outcome: Outcome) -> Corrections:
    corrections = Corrections()
    for _ in range(60):
        learn(corrections, plan, outcome)
    return corrections


@pytest.mark.parametrize(("plan", "worker_id"), [(SPLIT, "p"), (LOCAL, "d")])
def test_each_phase_is_compared_with_what_was_predicted_before_correction(plan: Plan, worker_id: str) -> None:
    corrections = learned(plan, WENT)
    assert corrections.factor(worker_id, Phase.PREFILL, 100) == pytest.approx(0.15 / 0.1, rel=0.01)
    assert corrections.factor("d", Phase.DECODE, 3) == pytest.approx(0.03 / 0.02, rel=0.01)
    assert corrections.path_s(is_split=plan is SPLIT) == pytest.approx(0.015, rel=0.01)
    assert corrections.path_s(is_split=plan is not SPLIT) == DEFAULT_PATH_S


def test_a_prompt_that_was_cached_otherwise_says_nothing_of_the_workers_speed() -> None:
    corrections = learned(SPLIT, dataclasses.replace(WENT, computed_tokens=132))
    assert corrections.factor("p", Phase.PREFILL, 100) == 1.0


def test_how_far_predictions_are_from_what_happened_becomes_a_margin() -> None:
    corrections = learned(SPLIT, WENT)
    assert corrections.first_token.margin > 1.0
    assert corrections.token.margin > 1.0
    assert learned(SPLIT, dataclasses.replace(WENT, time_to_first_token_s=None)).first_token.margin == 1.0


def test_few_steps_say_nothing() -> None:
    corrections = learned(SPLIT, dataclasses.replace(WENT, decode_steps=LEAST_STEPS - 1))
    assert corrections.factor("d", Phase.DECODE, 3) == 1.0


def test_without_tokens_or_prediction_nothing_is_learned() -> None:
    assert learned(SPLIT, dataclasses.replace(WENT, time_to_first_token_s=None)).path_s(is_split=True) == DEFAULT_PATH_S
    corrections = learned(dataclasses.replace(SPLIT, prediction=None), WENT)
    assert corrections.factor("p", Phase.PREFILL, 100) == 1.0
    assert corrections.path_s(is_split=True) == DEFAULT_PATH_S
