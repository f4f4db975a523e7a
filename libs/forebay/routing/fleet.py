"""Workers as the planner sees them, and which of them may serve together. Pure.

Knows nothing of how members are heard of, nor of how busy they are right now.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from forebay.kv.layout import KvLayout
from forebay.role import Role


@dataclass(frozen=True, slots=True)
class Worker:
    """A prefill or decode process that can be reached."""

    worker_id: str
    role: Role
    node_id: str
    model_digest: str
    layout: KvLayout
    max_sequences: int
    is_draining: bool = False


@dataclass(frozen=True, slots=True)
class NodeCache:
    """The KV-cache service of a node: what its memory holds is the truth for that node."""

    node_id: str
    model_digest: str
    layout: KvLayout


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """Workers that serve one model, sorted by id."""

    prefill: tuple[Worker, ...] = ()
    decode: tuple[Worker, ...] = ()


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
