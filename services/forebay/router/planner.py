"""Plans one request on what this router knows now: snapshot, prefix matches, reported load and its own in-flight.

Feeds the pure `plan` and keeps the in-flight charges; connects to nobody.
"""

import random
from collections.abc import Callable, Sequence

from forebay.fleet.load import LoadView
from forebay.fleet.member import Load
from forebay.kv.hashing import block_hashes, reusable_block_count, root_hash
from forebay.router.request import Request
from forebay.routing.fleet import FleetSnapshot
from forebay.routing.in_flight import InFlight, WorkerLoad
from forebay.routing.plan import DEFAULT_ALONE_TOKENS, Plan, PlanRequest, plan
from forebay.routing.prefix_index import PrefixIndex, PrefixMatch


class Planner:
    """`loads`: what workers report; `snapshot`: the fleet when planning; `alone_tokens`: see PlanRequest."""

    def __init__(
        self,
        index: PrefixIndex,
        loads: LoadView,
        snapshot: Callable[[], FleetSnapshot],
        alone_tokens: int = DEFAULT_ALONE_TOKENS,
    ) -> None:
        self._alone_tokens = alone_tokens
        self._index = index
        self._loads = loads
        self._snapshot = snapshot
        self._in_flight = InFlight()
        self._random = random.Random()  # noqa: S311  # breaks ties, guards nothing

    def plan(self, request: Request, token_ids: Sequence[int], is_begun: bool = False) -> Plan:
        """Where these tokens are computed and what follows them; `is_begun`: the last of them were generated.

        Raises NoWorkerError when no worker can take it.
        """
        fleet = self._snapshot()
        matches = self._matches(request, token_ids, fleet)
        reported = {worker_id: _worker_load(load) for worker_id, load in self._loads.loads.items()}
        counts = {worker_id: self._loads.report_count(worker_id) for worker_id in reported}
        return plan(
            PlanRequest(len(token_ids), request.forced_mode, self._alone_tokens, is_begun),
            fleet,
            matches,
            self._in_flight.loads(reported, counts),
            self._random.random(),
        )

    def _matches(self, request: Request, token_ids: Sequence[int], fleet: FleetSnapshot) -> dict[str, PrefixMatch]:
        """By node with decode workers, how much of the prompt is held there, in blocks of that node's size."""
        matches: dict[str, PrefixMatch] = {}
        for block_tokens in {worker.layout.block_tokens for worker in fleet.decode}:
            nodes = {one.node_id for one in fleet.decode if one.layout.block_tokens == block_tokens}
            root = root_hash(fleet.decode[0].model_digest, request.tenant, request.cache_salt)
            reusable_tokens = reusable_block_count(len(token_ids), block_tokens) * block_tokens
            held = self._index.match(block_hashes(root, token_ids[:reusable_tokens], block_tokens))
            matches |= {node_id: match for node_id, match in held.items() if node_id in nodes}
        return matches

    def charge(self, request_id: str, chosen: Plan, prompt_tokens: int) -> None:
        """The request's work counts as its workers' load from now on."""
        rest_tokens = prompt_tokens - chosen.matched_tokens
        computing = chosen.prefill_worker_id or chosen.decode_worker_id
        for worker_id in {computing, chosen.decode_worker_id}:
            load = WorkerLoad(sequences=1, queued_tokens=rest_tokens if worker_id == computing else 0)
            self._in_flight.charge(worker_id, request_id, load, self._loads.report_count(worker_id))

    def discharge(self, request_id: str, chosen: Plan) -> None:
        """It counts no more."""
        self.prefilled(request_id, chosen)
        self._in_flight.release(chosen.decode_worker_id, request_id)

    def prefilled(self, request_id: str, chosen: Plan) -> None:
        """The prefill worker is done with the request."""
        if chosen.prefill_worker_id is not None:
            self._in_flight.release(chosen.prefill_worker_id, request_id)


def _worker_load(load: Load) -> WorkerLoad:
    return WorkerLoad(load.running_sequences + load.queued_sequences, load.queued_tokens)
