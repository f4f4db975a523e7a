"""Requests, tiers and index events as protobuf, and the checks that need nothing but the message."""

from collections.abc import Sequence
from typing import Final

from forebay.errors import InvalidFieldError
from forebay.kv.attachments import WorkerProcess
from forebay.kv.effects import IndexEvent, Moved, Removed, Stored
from forebay.kv.grant import SealEntry
from forebay.kv.hashing import HASH_BYTES
from forebay.kv.pool import TierCounts
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena
from forebay.v1 import common_pb2, events_pb2, kvcache_pb2

TIERS: Final = {Tier.DEVICE: common_pb2.KV_TIER_DEVICE, Tier.HOST: common_pb2.KV_TIER_HOST}
_WORKER_ROLES: Final = (common_pb2.SERVICE_ROLE_PREFILL, common_pb2.SERVICE_ROLE_DECODE)
MAX_ID_CHARACTERS: Final = 256


def checked_process(request: kvcache_pb2.AttachWorkerRequest) -> WorkerProcess:
    """The process that introduces itself.

    Raises:
        InvalidFieldError: it is none, or no worker.
    """
    check_id(request.worker_id, "worker_id")
    if request.pid == 0 or request.process_start_ticks == 0:
        raise InvalidFieldError("must be set", field="process_start_ticks" if request.pid else "pid")
    if request.role not in _WORKER_ROLES:
        raise InvalidFieldError("only PREFILL and DECODE workers attach", field="role")
    return WorkerProcess(request.worker_id, request.pid, request.process_start_ticks)


def check_id(text: str, field: str) -> None:
    """Raises InvalidFieldError unless there is an id of bearable length."""
    if not 1 <= len(text) <= MAX_ID_CHARACTERS:
        raise InvalidFieldError(f"must have 1 .. {MAX_ID_CHARACTERS} characters", field=field)


def checked_hashes(hashes: Sequence[bytes], field: str) -> list[bytes]:
    """The hashes, each of the right length, else InvalidFieldError."""
    if set(map(len, hashes)) - {HASH_BYTES}:
        raise InvalidFieldError(f"each hash must have {HASH_BYTES} bytes", field=field)
    return list(hashes)


def seal_entry(entry: kvcache_pb2.SealEntry) -> SealEntry:
    """The entry. Raises InvalidFieldError when a hash has the wrong length."""
    return SealEntry(
        sequence_id=entry.sequence_id,
        epoch=entry.epoch,
        first_block_index=entry.first_block_index,
        block_hashes=checked_hashes(entry.block_hashes, "entries.block_hashes"),
        hand_over=entry.hand_over,
    )


def sequence_epochs(sequences: Sequence[kvcache_pb2.SequenceEpoch]) -> list[tuple[str, int]]:
    """Ids and epochs."""
    return [(sequence.sequence_id, sequence.epoch) for sequence in sequences]


def tier_stats(counts: TierCounts) -> kvcache_pb2.TierStats:
    """Counts of one tier."""
    return kvcache_pb2.TierStats(
        tier=TIERS[counts.tier],
        capacity_blocks=counts.capacity,
        free_blocks=counts.free,
        leased_blocks=counts.leased,
        sealed_blocks=counts.sealed,
        referenced_blocks=counts.referenced,
    )


def index_event(event: IndexEvent) -> events_pb2.KvEvent:
    """One change of the index."""
    match event:
        case Stored(tier, hashes):
            return events_pb2.KvEvent(stored=events_pb2.BlocksStored(tier=TIERS[tier], block_hashes=hashes))
        case Removed(tier, hashes):
            return events_pb2.KvEvent(removed=events_pb2.BlocksRemoved(tier=TIERS[tier], block_hashes=hashes))
        case Moved(from_tier, to_tier, hashes):
            moved = events_pb2.BlocksMoved(from_tier=TIERS[from_tier], to_tier=TIERS[to_tier], block_hashes=hashes)
            return events_pb2.KvEvent(moved=moved)


def memory_segment(arena: Arena) -> kvcache_pb2.MemorySegment:
    """What a worker needs to map a tier's memory."""
    return kvcache_pb2.MemorySegment(
        tier=TIERS[arena.tier],
        shm_name=arena.shm_name,
        size_bytes=arena.size_bytes,
        block_stride_bytes=arena.block_stride_bytes,
        block_count=arena.block_count,
    )
