"""Workers as the planner sees them, and which of them may serve together. Pure.

Knows nothing of how members are heard of, nor of how busy they are right now.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from forebay.errors import LayoutMismatchError
from forebay.kv.conversion import plan_conversion
from forebay.kv.layout import KvLayout
from forebay.role import Role
from forebay.routing.cost import ChipRates, ModelSize, StepCost
from forebay.routing.fleet_columns import FleetColumns


@dataclass(frozen=True, slots=True)
class Worker:
    """A prefill or decode process that can be reached.

    shares_cores: whether its node's other workers compute on what it computes on. model_size, rates: None until it
    has told them.
    """

    worker_id: str
    role: Role
    node_id: str
    model_digest: str
    layout: KvLayout
    max_sequences: int
    is_draining: bool = False
    chip_class: str = ""
    shares_cores: bool = False
    model_size: ModelSize | None = None
    rates: ChipRates | None = None


@dataclass(frozen=True, slots=True)
class NodeCache:
    """The KV-cache service of a node: what its memory holds is the truth for that node."""

    node_id: str
    model_digest: str
    layout: KvLayout


@dataclass(frozen=True, slots=True)
class Site:
    """A decode worker that takes new work, and the prefill workers that may compute for it; if none, why not."""

    decode: Worker
    partners: tuple[Worker, ...]
    refusal: str | None = None


@dataclass(frozen=True)
class FleetSnapshot:
    """Workers that serve one model, sorted by id. What follows from that alone is worked out once."""

    prefill: tuple[Worker, ...] = ()
    decode: tuple[Worker, ...] = ()

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The decode workers that take new work. Sites of equal choice share one tuple of partners."""
        on_node: dict[tuple[str, str], list[Worker]] = defaultdict(list)
        alike: dict[str, list[Worker]] = defaultdict(list)
        for one in self.prefill:
            if not one.is_draining:
                on_node[one.node_id, one.model_digest].append(one)
                alike[one.model_digest].append(one)
        beside: dict[tuple[str, str, KvLayout], tuple[Worker, ...]] = {}
        elsewhere: dict[tuple[str, KvLayout, str | None], tuple[tuple[Worker, ...], str | None]] = {}
        sites = []
        for decode in self.decode:
            if decode.is_draining:
                continue
            neighbours = on_node.get((decode.node_id, decode.model_digest), [])
            place = (decode.node_id, decode.model_digest, decode.layout)
            if place not in beside:
                beside[place] = tuple(one for one in neighbours if one.layout == decode.layout)
            if beside[place]:
                sites.append(Site(decode, beside[place]))
                continue
            # Prefill workers of its own node that keep KV otherwise are no partners, nor strangers.
            key = (decode.model_digest, decode.layout, decode.node_id if neighbours else None)
            if key not in elsewhere:
                others = [one for one in alike[decode.model_digest] if one.node_id != decode.node_id]
                elsewhere[key] = _convertible(others, decode.layout)
            sites.append(Site(decode, *elsewhere[key]))
        return tuple(sites)

    @cached_property
    def columns(self) -> FleetColumns:
        """The same as arrays, for planning; `costs` must be known."""
        return FleetColumns(self)

    @cached_property
    def nodes_of_block_size(self) -> Mapping[int, frozenset[str]]:
        """Nodes with workers, by the tokens of their blocks."""
        by_size: dict[int, set[str]] = defaultdict(set)
        for one in (*self.prefill, *self.decode):
            by_size[one.layout.block_tokens].add(one.node_id)
        return {block_tokens: frozenset(nodes) for block_tokens, nodes in by_size.items()}

    @cached_property
    def core_sharers(self) -> Mapping[str, tuple[str, ...]]:
        """By node the workers that compute on the same cores."""
        by_node: dict[str, list[str]] = defaultdict(list)
        for one in (*self.prefill, *self.decode):
            if one.shares_cores:
                by_node[one.node_id].append(one.worker_id)
        return {node_id: tuple(worker_ids) for node_id, worker_ids in by_node.items()}

    @cached_property
    def costs(self) -> Mapping[str, StepCost]:
        """By worker; empty when no worker's rates are known.

        A worker that has not told its rates counts as one of its chip class that has, else as the slowest of all.
        """
        told = [(one, one.model_size, one.rates) for one in (*self.prefill, *self.decode)]
        known = {one.worker_id: (size, rates) for one, size, rates in told if size is not None and rates is not None}
        if not known:
            return {}
        of_class = {one.chip_class: known[one.worker_id] for one, _, _ in told if one.worker_id in known}
        slowest = min(known.values(), key=lambda figures: figures[1].flops_per_s)
        figures = {one.worker_id: known.get(one.worker_id, of_class.get(one.chip_class, slowest)) for one, _, _ in told}
        return {worker_id: StepCost(size, rates) for worker_id, (size, rates) in figures.items()}


def _convertible(prefill: Iterable[Worker], layout: KvLayout) -> tuple[tuple[Worker, ...], str | None]:
    """Those whose blocks can become blocks of that layout; if some cannot, why not."""
    refusals: dict[KvLayout, str | None] = {}
    partners, refusal = [], None
    for one in prefill:
        if one.layout not in refusals:
            refusals[one.layout] = _conversion_refusal(one.layout, layout)
        if refusals[one.layout] is None:
            partners.append(one)
        refusal = refusal or refusals[one.layout]
    return tuple(partners), refusal


def _conversion_refusal(source: KvLayout, target: KvLayout) -> str | None:
    try:
        plan_conversion((source,), target)
    except LayoutMismatchError as error:
        return error.message
    return None


@dataclass(frozen=True, slots=True)
class Refusal:
    """A worker that is not used, and why."""

    worker_id: str
    reason: str


def select(workers: Iterable[Worker], caches: Iterable[NodeCache]) -> tuple[FleetSnapshot, tuple[Refusal, ...]]:
    """The workers that may serve, and those refused.

    The fleet's model is the one most KV-cache services hold. A worker must have that model and its node's layout.
    """
    cache_of = {cache.node_id: cache for cache in caches}
    digest = majority(cache.model_digest for cache in cache_of.values())
    accepted: dict[Role, list[Worker]] = {Role.PREFILL: [], Role.DECODE: []}
    refused: list[Refusal] = []
    for worker in sorted(workers, key=lambda w: w.worker_id):
        reason = _refusal(worker, cache_of.get(worker.node_id), digest)
        if reason is None:
            accepted[worker.role].append(worker)
        else:
            refused.append(Refusal(worker.worker_id, reason))
    snapshot = FleetSnapshot(tuple(accepted[Role.PREFILL]), tuple(accepted[Role.DECODE]))
    return snapshot, tuple(refused)


def majority(digests: Iterable[str]) -> str | None:
    """The most frequent value; the smallest of equally frequent ones; None of none."""
    counts = Counter(digests)
    return min(counts, key=lambda digest: (-counts[digest], digest), default=None)


def _refusal(worker: Worker, cache: NodeCache | None, digest: str | None) -> str | None:
    if cache is None:
        return f"node {worker.node_id} has no KV-cache service"
    if worker.model_digest != digest:
        return "its model digest is not the fleet's"
    if worker.model_digest != cache.model_digest:
        return "its model digest is not that of its node's KV-cache service"
    if worker.layout != cache.layout:
        return "its KV layout is not that of its node's KV-cache service"
    return None
