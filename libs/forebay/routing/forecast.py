"""What each way to serve a request would take, by the rates and loads of its workers. Pure.

Time is what the request waits: behind queued prompts, beside others on the same cores, between a batch's steps. Energy
and money are of the seconds that are computed for it: its prefill, and its part of each decode step.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from operator import attrgetter
from typing import Final, NamedTuple

from forebay.routing.correction import UNCORRECTED, Corrections, Phase
from forebay.routing.cost import DEFAULT_LINK, LinkRates, StepCost, transfer_exposed_s
from forebay.routing.fleet import FleetSnapshot, Site, Worker
from forebay.routing.in_flight import WorkerLoad
from forebay.routing.option import Held, Mode, PlanRequest, QosTier, held_by
from forebay.routing.prefix_index import NO_MATCH, PrefixMatch

HAND_OVER_S: Final = 0.004
"""Of the decode worker, to take a sequence over (docs/adr/009)."""
MOST_SITES: Final = 64
"""Decode workers that are looked at: those whose nodes hold most of the prompt, and others by chance. Of a larger fleet
that finds as good a one as looking at all does, nearly always, and routers that plan at once look at different ones."""
MOST_STRANGERS: Final = 4
"""Prefill workers of other nodes that are looked at for each decode worker: those with the shortest queues."""
INTERLEAVED_TOKENS: Final = 64
"""Prompt tokens of a step in which others generate: what the workers' step-time SLO leaves room for."""

LEAST_DEADLINE_S: Final = 0.001
EQUAL_TIME: Final = 1.05
EQUAL_S: Final = 0.001
"""Up to so many times, and so many seconds, later is as soon."""

_IDLE: Final = WorkerLoad()
_READY_S: Final = attrgetter("ready_s")


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is known beside the workers. link: between any two nodes. now_s: by the clock of `WorkerLoad.seen_s`."""

    corrections: Corrections = UNCORRECTED
    link: LinkRates = DEFAULT_LINK
    now_s: float = 0.0


NOTHING_LEARNED: Final = Conditions()


class Computing:
    """A prompt on one worker. prefill_s: as things are there; busy_s: on all of its cores, alone."""

    __slots__ = ("busy_s", "factor", "joules", "prefill_s", "queue_s", "ready_s", "usd", "worker")

    def __init__(self, worker: Worker, cost: StepCost, busy_s: float, factor: float) -> None:
        self.worker = worker
        self.busy_s = self.prefill_s = self.ready_s = busy_s
        self.queue_s = 0.0
        self.factor = factor
        self.joules = cost.watts * busy_s
        self.usd = cost.usd_per_s * busy_s

    def wait(self, queue_s: float, prefill_s: float) -> None:
        """So long behind others, and so long beside them."""
        self.queue_s = queue_s
        self.prefill_s = prefill_s
        self.ready_s = queue_s + prefill_s

    def is_useless_beside(self, other: "Computing") -> bool:
        """Whether it is later than the other by more than a tie, and no cheaper."""
        return (
            self.ready_s > other.ready_s * EQUAL_TIME + EQUAL_S
            and self.usd >= other.usd
            and self.joules >= other.joules
        )


class Decoding:
    """A sequence on one worker. busy_s: its part of all its steps.

    wait_s: for a place in its batch; token_wait_s: the same, for each of its tokens.
    """

    __slots__ = (
        "batch",
        "busy_s",
        "factor",
        "held",
        "joules",
        "step_s",
        "take_over",
        "token_wait_s",
        "usd",
        "wait_s",
        "worker",
    )

    def __init__(
        self, worker: Worker, held: Held, cost: StepCost, batch: int, step_s: float, output_tokens: int
    ) -> None:
        self.worker = worker
        self.held = held
        self.batch = batch
        self.step_s = step_s
        self.wait_s = self.token_wait_s = 0.0
        self.factor = 1.0
        self.busy_s = step_s / batch * output_tokens
        self.take_over = cost.watts * HAND_OVER_S, cost.usd_per_s * HAND_OVER_S
        self.joules = cost.watts * self.busy_s
        self.usd = cost.usd_per_s * self.busy_s


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan is expected to take. Seconds from planning on; energy and money of the whole request.

    batch: sequences of a step of the decode worker. prefill_factor, decode_factor: corrections that are in it.
    """

    queue_s: float
    prefill_s: float
    transfer_s: float
    time_to_first_token_s: float
    time_per_output_token_s: float
    joules: float
    usd: float
    batch: int
    prefill_factor: float
    decode_factor: float


class Forecast(NamedTuple):
    """One way to serve a request, with what it takes. Less is better: the first fields are in the order that counts.

    lateness: share by which REALTIME misses its target, the worse of both, or another tier its deadline; 0: it is met,
    or there is none.
    """

    lateness: float
    usd: float
    joules: float
    time_to_first_token_s: float
    time_per_output_token_s: float
    transfer_s: float
    number: int  # tells equals apart
    computing: Computing
    decoding: Decoding

    @property
    def is_split(self) -> bool:
        """Whether a prefill worker computes the prompt."""
        return self.computing.worker is not self.decoding.worker

    @property
    def prediction(self) -> Prediction:
        """The figures alone."""
        return Prediction(
            queue_s=self.computing.queue_s,
            prefill_s=self.computing.prefill_s,
            transfer_s=self.transfer_s,
            time_to_first_token_s=self.time_to_first_token_s,
            time_per_output_token_s=self.time_per_output_token_s,
            joules=self.joules,
            usd=self.usd,
            batch=self.decoding.batch,
            prefill_factor=self.computing.factor,
            decode_factor=self.decoding.factor,
        )


def forecasts(
    request: PlanRequest,
    fleet: FleetSnapshot,
    matches: Mapping[str, PrefixMatch],
    loads: Mapping[str, WorkerLoad],
    conditions: Conditions,
    tie_break: float,
) -> list[Forecast]:
    """Of all ways that are looked at; none when nothing can serve the request. The fleet's costs must be known."""
    outlook = _Outlook(request, fleet, matches, loads, conditions)
    for site in _looked_at(fleet, matches, tie_break):
        outlook.look_at(site)
    return outlook.forecasts


def mode_of(request: PlanRequest, forecast: Forecast) -> Mode:
    """What the forecast is called."""
    if forecast.is_split:
        return Mode.SPLIT
    is_resume = forecast.decoding.held.is_all and request.forced_mode is None
    return Mode.RESUME if is_resume else Mode.LOCAL


def _looked_at(fleet: FleetSnapshot, matches: Mapping[str, PrefixMatch], tie_break: float) -> Iterable[Site]:
    sites = fleet.sites
    if len(sites) <= MOST_SITES:
        return sites
    by_depth = sorted(matches, key=lambda node_id: -matches[node_id].block_count)
    holders = [site for node_id in by_depth[: MOST_SITES // 2] for site in fleet.sites_of_node.get(node_id, ())]
    looked_at = {site.decode.worker_id: site for site in holders[: MOST_SITES // 2]}
    first, stride = int(tie_break * len(sites)), max(1, len(sites) // MOST_SITES)
    place = first
    for _ in range(len(sites)):
        if len(looked_at) >= MOST_SITES:
            break
        site = sites[place % len(sites)]
        looked_at[site.decode.worker_id] = site
        place += stride
    return looked_at.values()


class _Outlook:
    """One request, one fleet. Keeps what several ways have in common."""

    def __init__(
        self,
        request: PlanRequest,
        fleet: FleetSnapshot,
        matches: Mapping[str, PrefixMatch],
        loads: Mapping[str, WorkerLoad],
        conditions: Conditions,
    ) -> None:
        self._request = request
        self._fleet = fleet
        self._costs = fleet.costs
        self._matches = matches
        self._loads = loads
        self._corrections = conditions.corrections
        self._link = conditions.link
        self._now_s = conditions.now_s
        self._alone_path_s = self._corrections.path_s(is_split=False)
        self._split_path_s = self._corrections.path_s(is_split=True)
        self._is_realtime = is_realtime = request.qos_tier is QosTier.REALTIME
        self._most_first_s = request.target.time_to_first_token_s if is_realtime else math.inf
        self._most_token_s = request.target.time_per_output_token_s if is_realtime else math.inf
        self._deadline_s = math.inf if is_realtime else max(request.deadline_s, LEAST_DEADLINE_S)
        self._held: dict[tuple[str | None, int], Held] = {}
        self._busy_count: dict[str, int] = {}
        self._computing: dict[tuple[str, int], Computing] = {}
        self._partners: dict[int, list[Computing]] = {}
        self._strangers: dict[int, list[Worker]] = {}
        self.forecasts: list[Forecast] = []

    def look_at(self, site: Site) -> None:
        """Adds the ways in which this decode worker could serve."""
        request, decode = self._request, site.decode
        held = self._held_by(decode)
        decoding = self._decoding(decode, held)
        forced = request.forced_mode
        is_held = held.is_all and forced is None  # what is left is worth no hand-over
        has_partner = bool(site.partners) and not (request.is_begun or is_held or forced is Mode.LOCAL)
        may_be_alone = request.is_begun or forced is not Mode.SPLIT
        if may_be_alone and (request.alone_tokens > 0 or not has_partner):
            self._add_alone(decoding)
        if not has_partner:
            return
        if site.partners[0].node_id == decode.node_id:
            for computing in self._beside(site.partners, held):
                self._add_split(decoding, computing, 0.0)
            return
        for prefill in self._nearest(site.partners):
            computing = self._computing_on(prefill, self._held_by(prefill).tokens)
            self._add_split(decoding, computing, self._transfer_s(decode, held, computing))

    def _beside(self, partners: tuple[Worker, ...], held: Held) -> list[Computing]:
        """The prompt on a node's prefill workers, without those that another of them is better than in every way."""
        known = self._partners.get(id(partners))
        if known is None:
            every = [self._computing_on(prefill, held.tokens) for prefill in partners]
            soonest = min(every, key=_READY_S)
            known = self._partners[id(partners)] = [one for one in every if not one.is_useless_beside(soonest)]
        return known

    def _add_alone(self, decoding: Decoding) -> None:
        decode, held = decoding.worker, decoding.held
        computing = self._computing_on(decode, held.tokens)
        if decoding.batch > 1:  # its chunks go between steps in which the others generate
            chunk_count = -(-(self._request.prompt_tokens - held.tokens) // INTERLEAVED_TOKENS)
            computing.wait(computing.queue_s, computing.prefill_s + chunk_count * decoding.step_s / decoding.factor)
        wait_s = decoding.wait_s + self._alone_path_s
        self._add(computing, decoding, wait_s, decoding.step_s, (0.0, 0.0, 0.0))

    def _add_split(self, decoding: Decoding, computing: Computing, transfer_s: float) -> None:
        token_s = decoding.step_s + decoding.token_wait_s
        self._add(computing, decoding, self._split_path_s, token_s, (transfer_s, *decoding.take_over))

    def _add(
        self,
        computing: Computing,
        decoding: Decoding,
        wait_s: float,
        token_s: float,
        hand_over: tuple[float, float, float],
    ) -> None:
        """hand_over: its seconds, joules and US dollars."""
        transfer_s, joules, usd = hand_over
        first_s = wait_s + computing.ready_s + transfer_s
        lateness = 0.0
        if first_s > self._most_first_s or token_s > self._most_token_s:
            lateness = max(first_s / self._most_first_s, token_s / self._most_token_s) - 1.0
        elif first_s + token_s * self._request.output_tokens > self._deadline_s:
            lateness = (first_s + token_s * self._request.output_tokens) / self._deadline_s - 1.0
        forecasts = self.forecasts
        forecasts.append(
            tuple.__new__(  # as Forecast(...), at half its price
                Forecast,
                (
                    lateness,
                    computing.usd + decoding.usd + usd,
                    computing.joules + decoding.joules + joules,
                    first_s,
                    token_s,
                    transfer_s,
                    len(forecasts),
                    computing,
                    decoding,
                ),
            )
        )

    def _transfer_s(self, decode: Worker, held: Held, computing: Computing) -> float:
        token_bytes = self._costs[decode.worker_id].kv_token_bytes
        kv_bytes = (self._request.prompt_tokens - held.tokens) * token_bytes
        return transfer_exposed_s(self._link, kv_bytes, computing.prefill_s, decode.layout.block_tokens * token_bytes)

    def _computing_on(self, worker: Worker, held_tokens: int) -> Computing:
        """The prompt's rest on a worker, behind what waits there."""
        key = worker.worker_id, held_tokens
        known = self._computing.get(key)
        if known is not None:
            return known
        prompt_tokens = self._request.prompt_tokens
        cost, load = self._costs[worker.worker_id], self._loads.get(worker.worker_id, _IDLE)
        factor = self._corrections.factor(worker.worker_id, Phase.PREFILL, prompt_tokens - held_tokens)
        busy_s = cost.prefill_s(prompt_tokens, held_tokens) * factor
        known = self._computing[key] = Computing(worker, cost, busy_s, factor)
        sharers = 1 + self._busy_others(worker, load)
        ahead_tokens = load.queued_realtime_tokens if self._is_realtime else load.queued_tokens
        if sharers > 1 or ahead_tokens:
            queue_s = cost.prefill_s(ahead_tokens, 0) * factor * sharers - (self._now_s - load.seen_s)
            known.wait(max(0.0, queue_s), busy_s * sharers)
        return known

    def _decoding(self, worker: Worker, held: Held) -> Decoding:
        """The sequence in a worker's batch, with those that are there."""
        request, cost = self._request, self._costs[worker.worker_id]
        load = self._loads.get(worker.worker_id, _IDLE)
        most = worker.max_sequences or 1
        batch = min(load.sequences + 1, most)
        context_tokens = load.context_tokens + request.prompt_tokens + request.output_tokens // 2
        factor = self._corrections.factor(worker.worker_id, Phase.DECODE, batch)
        step_s = cost.decode_step_s(batch, context_tokens) * factor
        decoding = Decoding(worker, held, cost, batch, step_s, request.output_tokens)
        decoding.factor = factor
        excess = load.sequences + 1 - most
        if excess > 0:  # places become free one by one, in the time of an answer all of them
            decoding.token_wait_s = excess * decoding.step_s / most
            decoding.wait_s = decoding.token_wait_s * request.output_tokens
        return decoding

    def _busy_others(self, worker: Worker, load: WorkerLoad) -> int:
        """Workers that compute on its cores now."""
        if not worker.shares_cores:
            return 0
        count = self._busy_count.get(worker.node_id)
        if count is None:
            loads = self._loads
            sharers = self._fleet.core_sharers[worker.node_id]
            count = sum(loads.get(worker_id, _IDLE).sequences > 0 for worker_id in sharers)
            self._busy_count[worker.node_id] = count
        return count - (load.sequences > 0)

    def _held_by(self, worker: Worker) -> Held:
        match = self._matches.get(worker.node_id)
        key = None if match is None else worker.node_id, worker.layout.block_tokens
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = held_by(worker, self._request.prompt_tokens, match or NO_MATCH)
        return held

    def _nearest(self, partners: tuple[Worker, ...]) -> list[Worker]:
        """Those of other nodes that can begin soonest."""
        nearest = self._strangers.get(id(partners))
        if nearest is None:
            loads = self._loads
            nearest = nsmallest(MOST_STRANGERS, partners, key=lambda one: loads.get(one.worker_id, _IDLE).queued_tokens)
            self._strangers[id(partners)] = nearest
        return nearest
