"""Other ways to choose workers, to compare `plan` with: what most routers do. Pure, but for whose turn it is."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, Final, Protocol, cast

from forebay.errors import NoWorkerError
from forebay.routing.fleet import FleetSnapshot
from forebay.routing.forecast import NOTHING_LEARNED, Conditions
from forebay.routing.in_flight import WorkerLoad
from forebay.routing.option import Mode, Option, PlanRequest, options_of
from forebay.routing.plan import Plan, plan
from forebay.routing.prefix_index import PrefixMatch

_IDLE: Final = WorkerLoad()


class Policy(StrEnum):
    """How workers are chosen. All but COST split wherever there is a prefill worker and enough for it to do.

    LEAST_LOAD: the fewest sequences, whatever is cached. ROUND_ROBIN: one after the other. PREFIX: where most of the
    prompt is cached, whatever the load. ALWAYS_SPLIT, ALWAYS_LOCAL: as COST, but of one mode where that is possible.
    """

    COST = "cost"
    LEAST_LOAD = "least-load"
    ROUND_ROBIN = "round-robin"
    PREFIX = "prefix"
    ALWAYS_SPLIT = "always-split"
    ALWAYS_LOCAL = "always-local"


class Planning(Protocol):
    """As `plan`."""

    def __call__(
        self,
        request: PlanRequest,
        fleet: FleetSnapshot,
        matches: Mapping[str, PrefixMatch],
        loads: Mapping[str, WorkerLoad],
        tie_break: float,
        conditions: Conditions = NOTHING_LEARNED,
    ) -> Plan:
        """As `plan`."""
        ...


_Choice = Callable[[list[Option], Mapping[str, WorkerLoad], float], Option]
"""One of the options, by loads and a number in [0, 1) that chooses among equals."""
_Score = Callable[[Option, Mapping[str, WorkerLoad]], tuple[float, ...]]


def planning_by(policy: Policy) -> Planning:
    """What chooses by this policy."""
    match policy:
        case Policy.COST:
            return plan
        case Policy.ALWAYS_SPLIT:
            return _always(Mode.SPLIT)
        case Policy.ALWAYS_LOCAL:
            return _always(Mode.LOCAL)
        case Policy.LEAST_LOAD:
            return _by(policy, _least(_load))
        case Policy.PREFIX:
            return _by(policy, _least(lambda option, _: (-option.matched_tokens,)))
        case Policy.ROUND_ROBIN:
            turns = itertools.count()
            return _by(policy, lambda options, _, __: options[next(turns) % len(options)])


def _always(mode: Mode) -> Planning:
    def planning(request: PlanRequest, *circumstances: Any) -> Plan:
        try:
            forced = request if request.is_begun else replace(request, forced_mode=request.forced_mode or mode)
            return plan(forced, *circumstances)
        except NoWorkerError:
            return plan(request, *circumstances)

    return cast("Planning", planning)


def _by(policy: Policy, choose: _Choice) -> Planning:
    def planning(
        request: PlanRequest,
        fleet: FleetSnapshot,
        matches: Mapping[str, PrefixMatch],
        loads: Mapping[str, WorkerLoad],
        tie_break: float,
        conditions: Conditions = NOTHING_LEARNED,
    ) -> Plan:
        options = options_of(request, fleet, matches)
        return _plan_of(choose(options, loads, tie_break), f"by {policy.value}, of {len(options)} options")

    return planning


def _least(score: _Score) -> _Choice:
    def choose(options: list[Option], loads: Mapping[str, WorkerLoad], tie_break: float) -> Option:
        scores = [score(option, loads) for option in options]
        least = min(scores)
        best = [option for option, one in zip(options, scores, strict=True) if one == least]
        return best[int(tie_break * len(best))]

    return choose


def _load(option: Option, loads: Mapping[str, WorkerLoad]) -> tuple[float, ...]:
    workers = [option.decode] if option.prefill is None else [option.decode, option.prefill]
    return tuple(loads.get(one.worker_id, _IDLE).sequences / max(1, one.max_sequences) for one in workers)


def _plan_of(option: Option, why: str) -> Plan:
    return Plan(
        mode=option.mode,
        decode_worker_id=option.decode.worker_id,
        prefill_worker_id=None if option.prefill is None else option.prefill.worker_id,
        matched_tokens=option.matched_tokens,
        reason=f"{option.mode.value}: {why}.",
    )
