"""What `plan` chooses, by the plainest code that says so: one way after the other. To compare the real one with."""

from collections.abc import Mapping
from heapq import nsmallest
from typing import Final, NamedTuple

from forebay.routing.correction import Phase
from forebay.routing.cost import StepCost, transfer_exposed_s
from forebay.routing.fleet import FleetSnapshot, Site, Worker
from forebay.routing.fleet_columns import HAND_OVER_S, MOST_STRANGERS
from forebay.routing.forecast import Conditions, Prediction
from forebay.routing.in_flight import WorkerLoad
from forebay.routing.objective import EQUAL_COST
from forebay.routing.option import Held, Mode, PlanRequest, QosTier, held_by
from forebay.routing.outlook import EQUAL_S, EQUAL_TIME, INTERLEAVED_TOKENS, LEAST_DEADLINE_S
from forebay.routing.prefix_index import NO_MATCH, PrefixMatch

_IDLE: Final = WorkerLoad()


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


class Decoding:
    """A sequence on one worker. busy_s: its part of all its steps.

    wait_s: for a place in its batch; token_wait_s: the same, for each of its tokens.
    """

    __slots__ = (
        "alone_step_s",
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
        self.alone_step_s = step_s
        self.busy_s = step_s / batch * output_tokens
        self.take_over = cost.watts * HAND_OVER_S, cost.usd_per_s * HAND_OVER_S
        self.joules = cost.watts * self.busy_s
        self.usd = cost.usd_per_s * self.busy_s


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


def plain_choice(
    request: PlanRequest,
    fleet: FleetSnapshot,
    matches: Mapping[str, PrefixMatch],
    loads: Mapping[str, WorkerLoad],
    conditions: Conditions,
    tie_break: float,
) -> tuple[Forecast, Forecast | None, int] | None:
    """The best way, the best of the others, and how many there are; None: there is none.

    Of a fleet that is small enough for all to be looked at.
    """
    outlook = _Outlook(request, fleet, matches, loads, conditions)
    for site in fleet.sites:
        outlook.look_at(site)
    if not outlook.forecasts:
        return None
    return *_choose(outlook.forecasts, tie_break), len(outlook.forecasts)


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
        first_margin, token_margin = self._corrections.first_token.margin, self._corrections.token.margin
        self._most_first_s = request.target.time_to_first_token_s / first_margin if is_realtime else float("inf")
        self._most_token_s = request.target.time_per_output_token_s / token_margin if is_realtime else float("inf")
        self._deadline_s = float("inf") if is_realtime else max(request.deadline_s, LEAST_DEADLINE_S)
        self._held: dict[tuple[str | None, int], Held] = {}
        self._busy_count: dict[str, int] = {}
        self._computing: dict[tuple[str, int], Computing] = {}
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
            for prefill in site.partners:
                self._add_split(decoding, self._computing_on(prefill, held.tokens), 0.0)
            return
        for prefill in self._nearest(site.partners):
            computing = self._computing_on(prefill, self._held_by(prefill).tokens)
            self._add_split(decoding, computing, self._transfer_s(decode, held, computing))

    def _add_alone(self, decoding: Decoding) -> None:
        decode, held = decoding.worker, decoding.held
        computing = self._computing_on(decode, held.tokens)
        if decoding.batch > 1:  # its chunks go between steps in which the others generate
            chunk_count = -(-(self._request.prompt_tokens - held.tokens) // INTERLEAVED_TOKENS)
            computing.wait(computing.queue_s, computing.prefill_s + chunk_count * decoding.alone_step_s)
        first_s = computing.ready_s + self._alone_path_s + decoding.wait_s
        self._add(computing, decoding, first_s, decoding.step_s, (0.0, 0.0, 0.0))

    def _add_split(self, decoding: Decoding, computing: Computing, transfer_s: float) -> None:
        token_s = decoding.step_s + decoding.token_wait_s
        first_s = computing.ready_s + self._split_path_s + transfer_s
        self._add(computing, decoding, first_s, token_s, (transfer_s, *decoding.take_over))

    def _add(
        self,
        computing: Computing,
        decoding: Decoding,
        first_s: float,
        token_s: float,
        hand_over: tuple[float, float, float],
    ) -> None:
        """hand_over: its seconds, joules and US dollars."""
        transfer_s, joules, usd = hand_over
        whole_s = first_s + token_s * self._request.output_tokens
        share = max(first_s / self._most_first_s, token_s / self._most_token_s, whole_s / self._deadline_s)
        lateness = max(0.0, share - 1.0)
        forecasts = self.forecasts
        forecasts.append(
            Forecast(
                lateness,
                computing.usd + decoding.usd + usd,
                computing.joules + decoding.joules + joules,
                first_s,
                token_s,
                transfer_s,
                len(forecasts),
                computing,
                decoding,
            )
        )

    def _transfer_s(self, decode: Worker, held: Held, computing: Computing) -> float:
        token_bytes = self._costs[decode.worker_id].kv_token_bytes
        kv_bytes = (self._request.prompt_tokens - held.tokens) * token_bytes
        tail_bytes = decode.layout.block_tokens * token_bytes
        return float(transfer_exposed_s(self._link, kv_bytes, computing.prefill_s, tail_bytes))

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
        waited_s = self._now_s - load.seen_s
        queue_s = cost.prefill_s(ahead_tokens, 0) * factor * sharers - waited_s if ahead_tokens else 0.0
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
        alone_step_s = cost.decode_step_s(batch, context_tokens)
        step_s = alone_step_s * factor
        decoding = Decoding(worker, held, cost, batch, step_s, request.output_tokens)
        decoding.alone_step_s = alone_step_s
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
            held = self._held[key] = held_by(worker.layout.block_tokens, self._request.prompt_tokens, match or NO_MATCH)
        return held

    def _nearest(self, partners: tuple[Worker, ...]) -> list[Worker]:
        """Those of other nodes that can begin soonest."""
        nearest = self._strangers.get(id(partners))
        if nearest is None:
            loads = self._loads
            nearest = nsmallest(MOST_STRANGERS, partners, key=lambda one: loads.get(one.worker_id, _IDLE).queued_tokens)
            self._strangers[id(partners)] = nearest
        return nearest


def _choose(options: list[Forecast], tie_break: float) -> tuple[Forecast, Forecast | None]:
    best = min(options)
    most_late, most_usd = best.lateness * EQUAL_TIME, best.usd * EQUAL_COST
    most_joules, most_first_s = best.joules * EQUAL_COST, best.time_to_first_token_s * EQUAL_TIME + EQUAL_S
    equals = [
        one
        for one in options
        if one[0] <= most_late and one[1] <= most_usd and one[2] <= most_joules and one[3] <= most_first_s
    ]
    equals = [one for one in equals if not one.is_split] or equals  # a hand-over must win, not draw
    chosen = equals[int(tie_break * len(equals))]
    if chosen is not best:
        return chosen, best
    return best, min((one for one in options if one is not best), default=None)
