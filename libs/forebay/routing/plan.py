"""Choosing prefill worker, decode worker and mode of one request, together. Pure.

Where workers have told their rates: by predicted seconds, joules and money (`forecast`, `objective`). Where none has:
by the rule of thumb (`least_load`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from forebay.routing.fleet import FleetSnapshot
from forebay.routing.forecast import NOTHING_LEARNED, Conditions, Forecast, Prediction, mode_of
from forebay.routing.in_flight import WorkerLoad
from forebay.routing.least_load import least_loaded, reason_of
from forebay.routing.objective import choose
from forebay.routing.option import (
    DEFAULT_ALONE_TOKENS,
    DEFAULT_OUTPUT_TOKENS,
    RESUME_MAX_TOKENS,
    Mode,
    PlanRequest,
    QosTier,
    Target,
    no_worker,
    options_of,
)
from forebay.routing.outlook import MOST_SITES, Outlook
from forebay.routing.prefix_index import PrefixMatch
from forebay.routing.reason import reason_for

__all__ = [
    "DEFAULT_ALONE_TOKENS",
    "DEFAULT_OUTPUT_TOKENS",
    "RESUME_MAX_TOKENS",
    "Mode",
    "Plan",
    "PlanRequest",
    "QosTier",
    "Target",
    "plan",
]


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision. `prefill_worker_id` is set exactly in SPLIT.

    prediction: None where no worker's rates are known. comparison: what it was preferred to.
    """

    mode: Mode
    decode_worker_id: str
    prefill_worker_id: str | None
    matched_tokens: int
    reason: str
    prediction: Prediction | None = None
    comparison: "Comparison | None" = None

    @property
    def rejected(self) -> "Plan | None":
        """The best of the options that were not taken; None: there was no other, or none was predicted."""
        return None if self.comparison is None else _plan(*self.comparison)


class Comparison(NamedTuple):
    """Two forecasts, of which the first is worse, and how many there were."""

    request: PlanRequest
    worse: Forecast
    better: Forecast
    way_count: int


def plan(
    request: PlanRequest,
    fleet: FleetSnapshot,
    matches: Mapping[str, PrefixMatch],
    loads: Mapping[str, WorkerLoad],
    tie_break: float,
    conditions: Conditions = NOTHING_LEARNED,
) -> Plan:
    """Decides.

    Args:
        request: what is asked.
        fleet: workers that can be reached; draining ones get nothing.
        matches: by node, how much of the prompt is cached there.
        loads: by worker; absent means idle.
        tie_break: a random number in [0, 1) that chooses among equally good options, and in a large fleet among the
            workers that are looked at.
        conditions: what else predictions depend on.

    Raises:
        NoWorkerError: no worker can take it; the message says what is missing.
    """
    if not fleet.costs:
        options = options_of(request, fleet, matches)
        option = least_loaded(options, loads, tie_break)
        prefill_worker_id = None if option.prefill is None else option.prefill.worker_id
        return Plan(
            mode=option.mode,
            decode_worker_id=option.decode.worker_id,
            prefill_worker_id=prefill_worker_id,
            matched_tokens=option.matched_tokens,
            reason=reason_of(request, option, len(options)),
        )
    outlook = Outlook(request, fleet, matches, loads, conditions, tie_break) if fleet.sites else None
    if outlook is None or not outlook.way_count:
        raise no_worker(request, fleet)
    # Which of a large fleet are looked at follows from the number's first digits, which of these is chosen from others.
    is_large = len(fleet.sites) > MOST_SITES
    best, next_best = choose(outlook, tie_break * len(fleet.sites) % 1.0 if is_large else tie_break)
    chosen, rejected = outlook.forecast(best), None if next_best is None else outlook.forecast(next_best)
    comparison = None if rejected is None else Comparison(request, rejected, chosen, outlook.way_count)
    return _plan(request, chosen, rejected, outlook.way_count, comparison)


def _plan(
    request: PlanRequest,
    forecast: Forecast,
    other: Forecast | None,
    way_count: int,
    comparison: Comparison | None = None,
) -> Plan:
    return Plan(
        mode=mode_of(request, forecast),
        decode_worker_id=forecast.decodes.worker_id,
        prefill_worker_id=forecast.computes.worker_id if forecast.is_split else None,
        matched_tokens=forecast.held.tokens,
        reason=reason_for(request, forecast, other, way_count),
        prediction=forecast.prediction,
        comparison=comparison,
    )
