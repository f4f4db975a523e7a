"""What a mesh occupies: the shares of its processes, and the shared memory behind its KV tiers. Asks no service.

Shared memory is taken whole at the start, whether or not a process has touched it yet; what processes have touched is
in their shares already, and must not be counted twice.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from forebay.host.process_identity import ProcessIdentity
from forebay.host.shared_memory import segment_name, segment_path, segments_of, taken_bytes
from forebay.kv.tier import Tier


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of one process.

    pss_bytes: its share, with shared pages divided among those that share them. pss_segment_bytes: the part of that
    which is the mesh's shared memory. None: the system does not tell.
    """

    rss_bytes: int | None = None
    pss_bytes: int | None = None
    pss_segment_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class TierMemory:
    """The shared memory of one KV tier."""

    tier: str
    path: str
    size_bytes: int


def process_memory(process: ProcessIdentity, node_id: str) -> ProcessMemory:
    """How much a process of the node has; nothing is known of one that is gone."""
    rss_bytes: int | None = None
    with suppress(psutil.Error, OSError):
        if process.is_running():
            running = psutil.Process(process.pid)
            rss_bytes = running.memory_info().rss
            segments = {str(path) for path in segments_of(node_id)}
            mapped_bytes = sum(entry.pss for entry in running.memory_maps() if entry.path in segments)
            return ProcessMemory(rss_bytes, running.memory_full_info().pss, mapped_bytes)
    return ProcessMemory(rss_bytes)


def tier_memory(node_id: str) -> list[TierMemory]:
    """The node's tiers that lie in shared memory, nearest to the kernels first."""
    segments = ((tier, segment_path(segment_name(node_id, tier.value))) for tier in Tier)
    return [TierMemory(tier.value, str(path), taken_bytes(path)) for tier, path in segments if path.exists()]


def occupied_bytes(node_id: str, processes: Iterable[ProcessMemory]) -> int:
    """All memory of the mesh, each page counted once."""
    segment_bytes = sum(taken_bytes(path) for path in segments_of(node_id))
    pss_bytes = mapped_bytes = 0
    for process in processes:
        pss_bytes += process.pss_bytes or 0
        mapped_bytes += process.pss_segment_bytes or 0
    return pss_bytes + max(0, segment_bytes - mapped_bytes)
