"""What a request's plan was wrong by, from what its workers then told. Pure."""

from dataclasses import dataclass
from typing import Final

from forebay.routing.correction import Corrections, Phase
from forebay.routing.plan import Plan

LEAST_STEPS: Final = 8
"""Fewer say more of a step's neighbours than of the step."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request went that no worker failed.

    queue_s, prefill_s, computed_tokens: of the worker that computed the prompt. decode_s, decode_steps: of the decode
    worker. time_to_first_token_s: from planning on; None: there was no token.
    """

    prompt_tokens: int
    computed_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    decode_steps: int
    time_to_first_token_s: float | None


def learn(corrections: Corrections, plan: Plan, outcome: Outcome) -> None:
    """Compares each phase's seconds with those predicted, before correction. Without a prediction nothing is learned.

    A prompt of which more or less was cached than planned says nothing of its worker's speed.
    """
    predicted = plan.prediction
    if predicted is None:
        return
    rest_tokens = outcome.prompt_tokens - plan.matched_tokens
    if outcome.computed_tokens == rest_tokens and predicted.prefill_s > 0:
        worker_id = plan.prefill_worker_id or plan.decode_worker_id
        uncorrected_s = predicted.prefill_s / predicted.prefill_factor
        corrections.learn(worker_id, Phase.PREFILL, rest_tokens, outcome.prefill_s / uncorrected_s)
    if outcome.decode_steps >= LEAST_STEPS:
        uncorrected_s = predicted.time_per_output_token_s / predicted.decode_factor
        step_s = outcome.decode_s / outcome.decode_steps
        corrections.learn(plan.decode_worker_id, Phase.DECODE, predicted.batch, step_s / uncorrected_s)
        if step_s > 0 and predicted.time_per_output_token_s > 0:
            corrections.token.take(step_s / predicted.time_per_output_token_s)
    if outcome.time_to_first_token_s is not None:
        if outcome.time_to_first_token_s > 0 and predicted.time_to_first_token_s > 0:
            corrections.first_token.take(outcome.time_to_first_token_s / predicted.time_to_first_token_s)
        explained_s = outcome.queue_s + outcome.prefill_s + predicted.transfer_s
        corrections.learn_path(plan.prefill_worker_id is not None, outcome.time_to_first_token_s - explained_s)
