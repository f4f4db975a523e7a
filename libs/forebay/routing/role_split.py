"""How many of a fleet's workers should prefill and how many decode, for what is asked of it. Pure.

Each split of the workers is judged by what the demand would come to there, as a mean: every worker's share of the work
by its speed, prompts queueing for prefill workers (the approximation of Sakasegawa for many servers, 1977, with waits
as variable as those of M/M/c), a batch as large as Little's law makes it, and workers that share cores slowing each
other by as many as are busy. It is as if all prompts were prefilled apart; decode workers that compute short ones
themselves only make that easier.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from forebay.role import Role
from forebay.routing.cost import StepCost
from forebay.routing.demand import Demand
from forebay.routing.option import Target
from forebay.routing.role_advice import Recommendation, SplitForecast

LEAST_REQUESTS: Final = 20
"""Fewer in the window say nothing of what is to come."""
WORTH_SWITCHING: Final = 0.75
"""A split must bring the pressure down to so much of today's, or to within the target, before a worker is switched."""
_ROUNDS: Final = 30  # of working out how busy workers that slow each other are


@dataclass(frozen=True, slots=True)
class RoleWorker:
    """A worker that could have either role. shares_cores: with those of its node of which the same is said."""

    worker_id: str
    role: Role
    node_id: str
    cost: StepCost
    max_sequences: int
    shares_cores: bool = False


def recommend(workers: Sequence[RoleWorker], demand: Demand, target: Target) -> Recommendation | None:
    """None where there is nothing to divide: fewer than one worker of each role."""
    if not all(any(one.role is role for one in workers) for role in (Role.PREFILL, Role.DECODE)):
        return None
    splits = tuple(_forecast(split, demand, target) for split in _splits(workers, demand))
    now = _forecast(workers, demand, target)
    if demand.requests < LEAST_REQUESTS or not demand.answers:
        reason = f"keep {now.name}: only {demand.requests} requests came in the last {demand.seconds:.0f} s"
        return Recommendation(demand, now, now, splits, (), reason)
    best = min(splits, key=lambda one: (one.pressure, abs(len(one.prefill_ids) - len(now.prefill_ids))))
    is_relief = now.pressure > 1.0 >= best.pressure or best.pressure < WORTH_SWITCHING * now.pressure
    if not is_relief or now.pressure <= WORTH_SWITCHING:
        return Recommendation(demand, now, now, splits, (), _keep(now, best))
    roles = dict.fromkeys(best.prefill_ids, Role.PREFILL) | dict.fromkeys(best.decode_ids, Role.DECODE)
    switches = tuple((one.worker_id, roles[one.worker_id]) for one in workers if roles[one.worker_id] is not one.role)
    return Recommendation(demand, now, best, splits, switches, _change(now, best, target))


def _splits(workers: Sequence[RoleWorker], demand: Demand) -> Iterator[Sequence[RoleWorker]]:
    """One for each number of prefill workers, from one up; each differs from today's in as few workers as can be.

    Those switched are those whose chip is best at the other role, compared with its own.
    """

    def suits_decode(one: RoleWorker) -> float:
        prefill_s = one.cost.prefill_s(max(1.0, demand.tokens_per_prompt), 0)
        return float(prefill_s / one.cost.decode_step_s(1, demand.tokens_per_prompt))

    prefill = sorted((one for one in workers if one.role is Role.PREFILL), key=suits_decode)
    decode = sorted((one for one in workers if one.role is Role.DECODE), key=suits_decode)
    for count in range(1, len(workers)):
        stays, leaves = prefill[:count], prefill[count:]
        joins, rest = decode[: max(0, count - len(prefill))], decode[max(0, count - len(prefill)) :]
        yield [
            *(replace(one, role=Role.PREFILL) for one in (*stays, *joins)),
            *(replace(one, role=Role.DECODE) for one in (*leaves, *rest)),
        ]


def _forecast(workers: Sequence[RoleWorker], demand: Demand, target: Target) -> SplitForecast:
    by_id = sorted(workers, key=lambda one: one.worker_id)  # sums come out the same, however the split came about
    prefill = [one for one in by_id if one.role is Role.PREFILL]
    decode = [one for one in by_id if one.role is Role.DECODE]
    load = _Load(prefill, decode, demand)
    first_s, token_s = load.first_token_s(), load.token_s()
    return SplitForecast(
        prefill_ids=tuple(sorted(one.worker_id for one in prefill)),
        decode_ids=tuple(sorted(one.worker_id for one in decode)),
        prefill_busy=load.prefill_busy,
        decode_busy=load.decode_busy,
        time_to_first_token_s=first_s,
        time_per_output_token_s=token_s,
        pressure=max(first_s / target.time_to_first_token_s, token_s / target.time_per_output_token_s),
    )


class _Load:
    """The demand on one split, worked out once. Work is divided among workers of a role by their speed."""

    def __init__(self, prefill: Sequence[RoleWorker], decode: Sequence[RoleWorker], demand: Demand) -> None:
        self._demand = demand
        prompt, cached = demand.tokens_per_prompt, min(demand.cached_per_prompt, demand.tokens_per_prompt)
        self._context = prompt + demand.tokens_per_answer / 2
        self._prompt_s = {one.worker_id: float(one.cost.prefill_s(prompt, cached)) for one in prefill}
        self._prefill, self._decode = prefill, decode
        self._most_rate = {one.worker_id: self._rate(one, one.max_sequences or 1) for one in decode}
        self._prefill_share = _shares({one: 1.0 / max(seconds, 1e-9) for one, seconds in self._prompt_s.items()})
        self._decode_share = _shares(self._most_rate)
        self._slower = self._slowdowns()
        tokens_per_s = demand.requests_per_s * demand.tokens_per_answer
        self.prefill_busy = max(
            demand.requests_per_s * self._prefill_share[one] * self._prompt_s[one] * self._slower[one]
            for one in self._prompt_s
        )
        self.decode_busy = max(
            tokens_per_s * self._decode_share[one] / self._most_rate[one] * self._slower[one] for one in self._most_rate
        )

    def first_token_s(self) -> float:
        """A prompt's wait, its prefill and the step of its first token."""
        count, busy = len(self._prefill), self.prefill_busy
        if busy >= 1.0 or self.decode_busy >= 1.0:
            return math.inf
        prompt_s = sum(self._prefill_share[one] * self._prompt_s[one] * self._slower[one] for one in self._prompt_s)
        wait_s = prompt_s * busy ** (math.sqrt(2 * (count + 1)) - 1) / (count * (1 - busy)) if busy > 0 else 0.0
        return wait_s + prompt_s + self.token_s()

    def token_s(self) -> float:
        """The step of the slowest decode worker."""
        return max(self._step_s(one, self._batch(one)) * self._slower[one.worker_id] for one in self._decode)

    def _slowdowns(self) -> dict[str, float]:
        """By worker: one and how many others are busy on its cores, on average."""
        alone = {
            one.worker_id: self._demand.requests_per_s
            * self._prefill_share[one.worker_id]
            * self._prompt_s[one.worker_id]
            for one in self._prefill
        }
        slower = {one.worker_id: 1.0 for one in (*self._prefill, *self._decode)}
        for _ in range(_ROUNDS):
            self._slower = slower
            alone |= {one.worker_id: self._batch(one) / slower[one.worker_id] for one in self._decode}
            busy = {one: min(1.0, alone[one] * slower[one]) for one in slower}
            slower = {
                one.worker_id: 1.0 + sum(busy[other.worker_id] for other in self._beside(one))
                for one in (*self._prefill, *self._decode)
            }
        return slower

    def _beside(self, one: RoleWorker) -> Iterator[RoleWorker]:
        if one.shares_cores:
            for other in (*self._prefill, *self._decode):
                if other is not one and other.shares_cores and other.node_id == one.node_id:
                    yield other

    def _batch(self, one: RoleWorker) -> float:
        """Sequences at once, on average: those that come while one is generated."""
        most = one.max_sequences or 1
        tokens_per_s = self._demand.requests_per_s * self._demand.tokens_per_answer * self._decode_share[one.worker_id]
        batch = 0.0
        for _ in range(_ROUNDS):
            batch = min(float(most), tokens_per_s * self._step_s(one, batch) * self._slower[one.worker_id])
        return batch

    def _step_s(self, one: RoleWorker, batch: float) -> float:
        return float(one.cost.decode_step_s(max(1.0, batch), max(1.0, batch) * self._context))

    def _rate(self, one: RoleWorker, batch: float) -> float:
        return batch / self._step_s(one, batch)


def _shares(speeds: dict[str, float]) -> dict[str, float]:
    total = sum(speeds.values())
    return {one: speed / total for one, speed in speeds.items()}


def _keep(now: SplitForecast, best: SplitForecast) -> str:
    other = "" if best.name == now.name else f"; {best.name} would not be worth a switch"
    return f"keep {now.name}: {_state(now)}{other}"


def _change(now: SplitForecast, best: SplitForecast, target: Target) -> str:
    to = f"{target.time_to_first_token_s * 1e3:.0f} and {target.time_per_output_token_s * 1e3:.0f} ms are wanted"
    return f"{best.name} instead of {now.name}: today {_state(now)}; then {_state(best)}; {to}"


def _state(one: SplitForecast) -> str:
    prefill, decode = f"prefill is {one.prefill_busy:.0%} busy", f"decode {one.decode_busy:.0%}"
    if math.isinf(one.time_to_first_token_s):
        return f"{prefill}, {decode}: work comes faster than it is done"
    first, token = one.time_to_first_token_s * 1e3, one.time_per_output_token_s * 1e3
    return f"{prefill}, {decode}, the first token comes after {first:.0f} ms and others take {token:.0f} ms"
