"""Whether a planned REALTIME request is served, or refused because it would be late. Pure."""

import math
from collections.abc import Callable

from forebay.errors import ForebayError, QueueFullError, SloUnattainableError
from forebay.routing.forecast import Prediction
from forebay.routing.option import Target

LEAST_RETRY_S = 0.1


def refusal(
    asked: Target | None, shed_after_s: float, planned: Prediction, least: Callable[[], Prediction | None]
) -> ForebayError | None:
    """Why it is not served; None: it is.

    asked: the objective that its caller insists on; None: none. shed_after_s: longest predicted wait behind other
    prompts. least: what it would take if all workers were idle; asked only where that matters.
    """
    if asked is not None and not _meets(planned, asked):
        best = least()
        if best is not None and _meets(best, asked):
            late_s = max(planned.time_to_first_token_s - asked.time_to_first_token_s, LEAST_RETRY_S)
            return QueueFullError(
                f"the objective of {_figures(asked)} cannot be met now: {_figures(planned)} are predicted",
                field="slo",
                retry_after_s=late_s,
            )
        best = best or planned
        return SloUnattainableError(
            f"the objective of {_figures(asked)} cannot be met here: the best is {_figures(best)}; set"
            " slo.accepts_miss to be served all the same",
            field="slo",
            time_to_first_token_ms=str(_ms(best.time_to_first_token_s)),
            time_per_output_token_ms=str(_ms(best.time_per_output_token_s)),
        )
    if planned.queue_s > shed_after_s:
        return QueueFullError(
            f"prompts that take about {planned.queue_s:.1f} s wait already",
            retry_after_s=max(planned.queue_s - shed_after_s, LEAST_RETRY_S),
        )
    return None


def _meets(prediction: Prediction, target: Target) -> bool:
    return (
        prediction.time_to_first_token_s <= target.time_to_first_token_s
        and prediction.time_per_output_token_s <= target.time_per_output_token_s
    )


def _figures(one: Prediction | Target) -> str:
    return f"{_ms(one.time_to_first_token_s)} ms to the first token and {_ms(one.time_per_output_token_s)} ms a token"


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1e3)
