"""The attempts of one request: each planned on what is known then, and charged to its workers while it lasts."""

from collections.abc import Sequence
from functools import partial

from forebay.errors import ForebayError
from forebay.kv.hashing import root_hash
from forebay.router.attempt import Attempt, LeftBehind, Workers
from forebay.router.early_bring import EarlyBring, bring_request
from forebay.router.fleet_links import FleetLinks
from forebay.router.health import Health
from forebay.router.planner import Planner
from forebay.router.prompt import Prompt
from forebay.routing.failover import Failover
from forebay.routing.option import QosTier
from forebay.routing.plan import Plan
from forebay.telemetry import span, spans


class Attempts:
    """`next` plans; the attempt begins when its `begin` is called."""

    def __init__(self, prompt: Prompt, links: FleetLinks, planner: Planner, failover: Failover, health: Health) -> None:
        """failover: knows whether the request has to be alone by now."""
        self._health = health
        self._prompt = prompt
        self._links = links
        self._planner = planner
        self._failover = failover
        self._last: tuple[Attempt, str] | None = None  # with the node that decodes it

    def next(self, emitted_token_ids: Sequence[int] = ()) -> Attempt:
        """Goes on behind the tokens that were generated before. Raises NoWorkerError when no worker can take it."""
        request, token_ids = self._prompt.request, self._prompt.token_ids
        if emitted_token_ids:
            token_ids = [*token_ids, *emitted_token_ids]
        with span(spans.PLAN) as current:
            is_alone = request.tier is QosTier.BACKUP or self._failover.is_suspect
            is_begun = bool(emitted_token_ids)
            chosen, on_disk = self._planner.plan(request, token_ids, is_begun=is_begun, is_alone=is_alone)
            current.set_attributes(_attributes(chosen))
        if on_disk is not None:
            self._links.hints.send(on_disk.node_id, on_disk.block_hashes)
        node_id = self._links.node_of(chosen.decode_worker_id)
        workers = self._workers(chosen, node_id, is_alone=is_alone)
        self._planner.charge(request.request_id, chosen, len(token_ids), request.tier)
        if is_alone:
            self._planner.isolate(request.request_id, chosen)
        watch = _Watch(self._planner, self._health, request.request_id, chosen, len(token_ids))
        watch.begun()
        attempt = Attempt(self._prompt, workers, emitted_token_ids, chosen, watch)
        self._last = attempt, node_id
        return attempt

    def _left_behind(self, chosen: Plan, node_id: str) -> LeftBehind | None:
        """What the last attempt left where this one is planned."""
        if self._last is None or chosen.prefill_worker_id is not None:
            return None
        last, last_node_id = self._last
        left = last.left_behind
        # A worker that is there again under its id may still be ending the sequence.
        is_at_hand = left is not None and node_id == last_node_id and chosen.decode_worker_id != left.worker_id
        return left if is_at_hand else None

    def _workers(self, chosen: Plan, node_id: str, *, is_alone: bool) -> Workers:
        prefill_worker_id, decode_worker_id = chosen.prefill_worker_id, chosen.decode_worker_id
        return Workers(
            decode=self._links.decode(decode_worker_id),
            prefill=None if prefill_worker_id is None else self._links.prefill(prefill_worker_id),
            taker=partial(self._links.taker, decode_worker_id, node_id),
            kvcache_address=self._links.kvcache_address,
            early_bring=self._early_bring(chosen),
            left_behind=self._left_behind(chosen, node_id),
            is_alone=is_alone,
        )

    def _early_bring(self, chosen: Plan) -> EarlyBring | None:
        workers = {one.worker_id: one for one in (*self._links.snapshot.prefill, *self._links.snapshot.decode)}
        prefill, decode = workers.get(chosen.prefill_worker_id or ""), workers[chosen.decode_worker_id]
        if prefill is None or prefill.node_id == decode.node_id:
            return None
        address, stub = self._links.kvcache_address(prefill.node_id), self._links.kvcache(decode.node_id)
        if address is None or stub is None:
            return None
        root = root_hash(prefill.model_digest, self._prompt.request.tenant, self._prompt.request.cache_salt)
        request = bring_request(prefill, decode, address, root, self._prompt.token_ids)
        return None if request is None else EarlyBring(stub, request)


class _Watch:
    """What planner and health hear of one attempt."""

    def __init__(self, planner: Planner, health: Health, request_id: str, chosen: Plan, token_count: int) -> None:
        self._planner, self._health = planner, health
        self._request_id, self._chosen, self._token_count = request_id, chosen, token_count

    def begun(self) -> None:
        for worker_id in self._worker_ids():
            self._health.begun(worker_id, self._request_id)

    def prefilled(self) -> None:
        self._planner.prefilled(self._request_id, self._chosen, self._token_count)

    def succeeded(self, worker_id: str) -> None:
        self._health.succeeded(worker_id)

    def failed(self, worker_id: str, error: ForebayError) -> None:
        self._health.failed(worker_id, self._request_id, error)

    def let_go(self) -> None:
        self._planner.discharge(self._request_id, self._chosen)
        for worker_id in self._worker_ids():
            self._health.ended(worker_id, self._request_id)

    def _worker_ids(self) -> list[str]:
        return [one for one in (self._chosen.prefill_worker_id, self._chosen.decode_worker_id) if one is not None]


def _attributes(chosen: Plan) -> dict[str, str | int | float]:
    attributes: dict[str, str | int | float] = {
        spans.MODE: chosen.mode.value,
        spans.PLAN_REASON: chosen.reason,
        spans.MATCHED_TOKENS: chosen.matched_tokens,
        spans.DECODE_WORKER_ID: chosen.decode_worker_id,
        spans.PREFILL_WORKER_ID: chosen.prefill_worker_id or "",
    }
    if chosen.prediction is not None:
        attributes[spans.PLAN_TTFT_S] = chosen.prediction.time_to_first_token_s
        attributes[spans.PLAN_TPOT_S] = chosen.prediction.time_per_output_token_s
        attributes[spans.PLAN_ENERGY_JOULES] = chosen.prediction.joules
        attributes[spans.PLAN_COST_USD] = chosen.prediction.usd
    if chosen.rejected is not None:
        attributes[spans.PLAN_REJECTED] = chosen.rejected.reason
    return attributes
