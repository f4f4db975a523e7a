"""Plans one request on what this router knows now: snapshot, prefix matches, reported load and its own in-flight.

Feeds the pure `plan`, keeps the in-flight charges and what predictions were wrong by; connects to nobody.
"""

import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from forebay.errors import RETRY_AFTER_S, NoWorkerError
from forebay.fleet.load import LoadView
from forebay.fleet.member import Load
from forebay.kv.hashing import block_hashes, reusable_block_count, root_hash
from forebay.kv.tier import Tier
from forebay.router.explanations import Explanations
from forebay.router.request import Request
from forebay.routing.admission import Room
from forebay.routing.baseline import Planning
from forebay.routing.correction import Corrections
from forebay.routing.cost import DEFAULT_LINK, LinkRates
from forebay.routing.fleet import FleetSnapshot
from forebay.routing.forecast import Conditions, Prediction
from forebay.routing.in_flight import ON_ITS_WAY_S, InFlight, WorkerLoad
from forebay.routing.occupancy import Occupancy
from forebay.routing.option import QosTier
from forebay.routing.outcome import Outcome, learn
from forebay.routing.plan import DEFAULT_ALONE_TOKENS, Plan, PlanRequest, plan
from forebay.routing.prefix_index import PrefixIndex, PrefixMatch
from forebay.rpc.deadline import remaining_s


@dataclass(frozen=True, slots=True)
class DiskPrefix:
    """The run of a prompt's blocks that a node holds, where some of it lies on disk alone."""

    node_id: str
    block_hashes: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class _Held:
    """matches: by node, how much of the prompt it holds; block_hashes: of the prompt, by tokens in a block."""

    matches: Mapping[str, PrefixMatch]
    block_hashes: Mapping[int, Sequence[bytes]]


class NoneFreeError(NoWorkerError):
    """There are workers, and one will be free."""


class Planner:
    """`loads`: what workers report; `snapshot`: the fleet when planning; `alone_tokens`: see PlanRequest.

    `planning`: what chooses.
    """

    def __init__(
        self,
        index: PrefixIndex,
        loads: LoadView,
        snapshot: Callable[[], FleetSnapshot],
        alone_tokens: int = DEFAULT_ALONE_TOKENS,
        link: LinkRates = DEFAULT_LINK,
        planning: Planning = plan,
    ) -> None:
        self._plan = planning
        self._alone_tokens = alone_tokens
        self._index = index
        self._reports = loads
        self._snapshot = snapshot
        self._in_flight = InFlight()
        self._loads: dict[str, WorkerLoad] = {}  # as far as they are known, with what reports cannot show yet
        self._random = random.Random()  # noqa: S311  # breaks ties, guards nothing
        self._corrections = Corrections()
        self.explanations = Explanations()
        self._link = link
        self._reported_s: dict[str, float] = {}  # when workers last reported
        self._occupancy = Occupancy()
        self._opened_s: dict[str, float] = {}  # when a request of this router that had a worker to itself ended there
        self._on_load: Callable[[], None] = lambda: None
        loads.on_report(self._heard)

    def on_load(self, listener: Callable[[], None]) -> None:
        """Calls `listener` whenever the fleet's room may have changed."""
        self._on_load = listener

    def room(self) -> Room:
        """What the fleet has room for."""
        self._occupancy.follow(self._snapshot())
        return self._occupancy.room(time.monotonic())

    def want_idle(self) -> None:
        """A request waits for a worker of its own."""
        self._occupancy.want_idle(time.monotonic())

    def plan(
        self, request: Request, token_ids: Sequence[int], *, is_begun: bool = False, is_alone: bool = False
    ) -> tuple[Plan, DiskPrefix | None]:
        """Where these tokens are computed and what follows them.

        is_begun: the last of them were generated. is_alone: on a worker that runs nothing else.

        Returns also what is worth reading from disk meanwhile. Raises NoWorkerError when no worker can take it.
        """
        self._occupancy.follow(self._snapshot())
        fleet = self._idle_fleet() if is_alone else self._open_fleet()
        held = self._held(request, token_ids, fleet)
        asked = self._asked(request, len(token_ids), is_begun=is_begun, is_alone=is_alone)
        chosen = self._plan(asked, fleet, held.matches, self._loads, self._random.random(), self._conditions())
        self.explanations.keep(request.request_id, chosen)
        return chosen, _disk_prefix(chosen, fleet, held)

    def least(self, request: Request, token_ids: Sequence[int]) -> Prediction | None:
        """What the request would take if all workers were idle; None where no rates are known, or nobody is there."""
        fleet = self._snapshot()
        held = self._held(request, token_ids, fleet)
        try:
            asked = self._asked(request, len(token_ids))
            return plan(asked, fleet, held.matches, {}, 0.0, self._conditions()).prediction
        except NoWorkerError:
            return None

    def learn(self, chosen: Plan, outcome: Outcome) -> None:
        """The request that was planned so went so."""
        learn(self._corrections, chosen, outcome)

    def keep(self, worker_ids: Collection[str]) -> None:
        """Forgets every worker that is not one of these."""
        for worker_id in [known for known in self._loads if known not in worker_ids]:
            del self._loads[worker_id]
        for worker_id in [known for known in self._reported_s if known not in worker_ids]:
            del self._reported_s[worker_id]
            self._in_flight.forget(worker_id)
        self._corrections.keep(worker_ids)
        self._occupancy.keep(worker_ids)
        self._opened_s = {one: opened_s for one, opened_s in self._opened_s.items() if one in worker_ids}
        self._on_load()

    def isolate(self, request_id: str, chosen: Plan) -> None:
        """The planned worker takes no other request until this one is discharged."""
        self._occupancy.isolate(request_id, chosen.decode_worker_id)

    def charge(self, request_id: str, chosen: Plan, prompt_tokens: int, tier: QosTier) -> None:
        """The request's work counts as its workers' load from now on."""
        computing, now_s = chosen.prefill_worker_id or chosen.decode_worker_id, time.monotonic()
        rest_tokens = prompt_tokens - chosen.matched_tokens
        if computing != chosen.decode_worker_id:
            self._charge(chosen.decode_worker_id, request_id, WorkerLoad(1, 0, prompt_tokens, now_s))
        urgent_tokens = rest_tokens if tier is QosTier.REALTIME else 0
        self._charge(computing, request_id, WorkerLoad(1, rest_tokens, chosen.matched_tokens, now_s, urgent_tokens))

    def prefilled(self, request_id: str, chosen: Plan, prompt_tokens: int) -> None:
        """The prompt is computed: a prefill worker is done with the request, a decode worker goes on with it."""
        if chosen.prefill_worker_id is not None:
            self._release(chosen.prefill_worker_id, request_id)
            return
        self._charge(chosen.decode_worker_id, request_id, WorkerLoad(1, 0, prompt_tokens, time.monotonic()))

    def discharge(self, request_id: str, chosen: Plan) -> None:
        """It counts no more."""
        if self._occupancy.open_up(request_id):
            self._opened_s[chosen.decode_worker_id] = time.monotonic()
        for worker_id in filter(None, (chosen.prefill_worker_id, chosen.decode_worker_id)):
            self._release(worker_id, request_id)

    def _open_fleet(self) -> FleetSnapshot:
        fleet = self._occupancy.open_fleet(time.monotonic())
        if not fleet.decode and self._snapshot().decode:
            raise NoneFreeError(
                "every decode worker is another request's alone, or is kept for one", retry_after_s=RETRY_AFTER_S
            )
        return fleet

    def _idle_fleet(self) -> FleetSnapshot:
        fleet = self._occupancy.idle_fleet()
        if not fleet.decode and self._snapshot().decode:
            self.want_idle()
            raise NoneFreeError(
                "no decode worker is idle, and this request is to have one to itself", retry_after_s=RETRY_AFTER_S
            )
        return fleet

    def _asked(
        self, request: Request, token_count: int, *, is_begun: bool = False, is_alone: bool = False
    ) -> PlanRequest:
        left_s = remaining_s()
        return PlanRequest(
            token_count,
            None if is_alone else request.forced_mode,
            self._alone_tokens,
            is_begun,
            QosTier.BACKUP if is_alone else request.tier,
            request.expected_output_tokens,
            request.target,
            math.inf if left_s is None else left_s,
        )

    def _conditions(self) -> Conditions:
        return Conditions(self._corrections, self._link, time.monotonic())

    def _held(self, request: Request, token_ids: Sequence[int], fleet: FleetSnapshot) -> _Held:
        """What nodes with workers hold of the prompt, in blocks of each node's size."""
        matches: dict[str, PrefixMatch] = {}
        hashes: dict[int, Sequence[bytes]] = {}
        if not fleet.decode:
            return _Held(matches, hashes)
        root = root_hash(fleet.decode[0].model_digest, request.tenant, request.cache_salt)
        for block_tokens, nodes in fleet.nodes_of_block_size.items():
            reusable_tokens = reusable_block_count(len(token_ids), block_tokens) * block_tokens
            hashes[block_tokens] = block_hashes(root, token_ids[:reusable_tokens], block_tokens)
            held = self._index.match(hashes[block_tokens])
            matches |= {node_id: match for node_id, match in held.items() if node_id in nodes}
        return _Held(matches, hashes)

    def _charge(self, worker_id: str, request_id: str, load: WorkerLoad) -> None:
        self._in_flight.charge(worker_id, request_id, load, time.monotonic())
        self._update(worker_id)

    def _release(self, worker_id: str, request_id: str) -> None:
        self._in_flight.release(worker_id, request_id, self._heard_s(worker_id), time.monotonic())
        self._update(worker_id)

    def _heard(self, worker_id: str) -> None:
        self._reported_s[worker_id] = time.monotonic()
        self._update(worker_id)

    def _heard_s(self, worker_id: str) -> float:
        return self._reported_s.get(worker_id, -math.inf)

    def _update(self, worker_id: str) -> None:
        heard_s = self._heard_s(worker_id)
        load = self._in_flight.load(worker_id, _worker_load(self._reports.loads.get(worker_id), heard_s), heard_s)
        if load.sequences:
            self._loads[worker_id] = load
        else:
            self._loads.pop(worker_id, None)
        report = self._reports.loads.get(worker_id)
        # What it said while a request of this router had it to itself is over.
        opened_s = self._opened_s.get(worker_id, -math.inf)
        is_isolated = report is not None and report.is_isolated and heard_s > opened_s + ON_ITS_WAY_S
        self._occupancy.note(worker_id, load.sequences, is_isolated=is_isolated)
        self._on_load()


def _disk_prefix(chosen: Plan, fleet: FleetSnapshot, held: _Held) -> DiskPrefix | None:
    """Of the node that computes the prompt, which is where its prefix is asked for."""
    on_disk = {node_id: match for node_id, match in held.matches.items() if Tier.DISK in match.tiers}
    if not on_disk:
        return None
    computes = chosen.prefill_worker_id or chosen.decode_worker_id
    worker = next(one for one in (*fleet.decode, *fleet.prefill) if one.worker_id == computes)
    match = on_disk.get(worker.node_id)
    if match is None:
        return None
    return DiskPrefix(worker.node_id, held.block_hashes[worker.layout.block_tokens][: match.block_count])


def _worker_load(load: Load | None, seen_s: float) -> WorkerLoad:
    if load is None:
        return WorkerLoad()
    return WorkerLoad(
        load.running_sequences + load.queued_sequences,
        load.queued_tokens,
        load.context_tokens,
        seen_s,
        load.queued_realtime_tokens,
    )
