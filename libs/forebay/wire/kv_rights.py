"""What workers ask of a KV-cache service and hear from it, and the checks that need nothing but the message."""

from collections.abc import Sequence
from typing import Final

from forebay.errors import InvalidFieldError
from forebay.kv.attachments import WorkerProcess
from forebay.kv.effects import Revoked, Shortage
from forebay.kv.grant import SealEntry, TakeOver
from forebay.kv.hashing import HASH_BYTES
from forebay.kv.pool import TierCounts
from forebay.kv.segment import MemorySegment
from forebay.role import Role
from forebay.v1 import kvcache_pb2
from forebay.wire.role import role_to_proto
from forebay.wire.tier import tier_from_proto, tier_to_proto

_WORKER_NUMBERS: Final = frozenset(map(role_to_proto, (Role.PREFILL, Role.DECODE)))
MAX_ID_CHARACTERS: Final = 256


def checked_process(request: kvcache_pb2.AttachWorkerRequest) -> WorkerProcess:
    """The process that introduces itself.

    Raises:
        InvalidFieldError: it is none, or no worker.
    """
    check_id(request.worker_id, "worker_id")
    if request.pid == 0 or request.process_start_ticks == 0:
        field = "process_start_ticks" if request.pid else "pid"
        raise InvalidFieldError(f"{field} must be set, to know when the worker's process is gone", field=field)
    if request.role not in _WORKER_NUMBERS:
        raise InvalidFieldError("only PREFILL and DECODE workers attach", field="role")
    return WorkerProcess(request.worker_id, request.pid, request.process_start_ticks)


def news_to_proto(news: Revoked | Shortage) -> kvcache_pb2.AttachWorkerResponse:
    """What an attached worker is told."""
    if isinstance(news, Shortage):
        return kvcache_pb2.AttachWorkerResponse(shortage=kvcache_pb2.Shortage(priority=news.priority))
    return kvcache_pb2.AttachWorkerResponse(revoked=kvcache_pb2.Revoked(sequence_ids=news.sequence_ids))


def check_id(text: str, field: str) -> None:
    """Raises InvalidFieldError unless there is an id of bearable length."""
    if not 1 <= len(text) <= MAX_ID_CHARACTERS:
        raise InvalidFieldError(f"{field} must have 1..{MAX_ID_CHARACTERS} characters", field=field)


def checked_hashes(hashes: Sequence[bytes], field: str) -> list[bytes]:
    """The hashes, each of the right length, else InvalidFieldError."""
    if set(map(len, hashes)) - {HASH_BYTES}:
        wrong = next(index for index, one in enumerate(hashes) if len(one) != HASH_BYTES)
        raise InvalidFieldError(
            f"each hash must have {HASH_BYTES} bytes; number {wrong} (from 0) has {len(hashes[wrong])}", field=field
        )
    return list(hashes)


def take_over_from_proto(message: kvcache_pb2.TakeOver) -> TakeOver:
    """How a sequence is to be taken over."""
    sealed_count = message.sealed_blocks if message.HasField("sealed_blocks") else None
    return TakeOver(message.epoch, message.block_count or None, sealed_count)


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
        tier=tier_to_proto(counts.tier),
        capacity_blocks=counts.capacity,
        free_blocks=counts.free,
        leased_blocks=counts.leased,
        sealed_blocks=counts.sealed,
        referenced_blocks=counts.referenced,
    )


def segment_to_proto(segment: MemorySegment) -> kvcache_pb2.MemorySegment:
    """What a worker needs to map a tier's memory."""
    return kvcache_pb2.MemorySegment(
        tier=tier_to_proto(segment.tier),
        shm_name=segment.shm_name,
        size_bytes=segment.size_bytes,
        block_stride_bytes=segment.block_stride_bytes,
        block_count=segment.block_count,
        device=segment.device,
        ipc_handle=segment.ipc_handle,
    )


def segment_from_proto(message: kvcache_pb2.MemorySegment) -> MemorySegment:
    """The segment of a message. Raises InvalidFieldError when its tier is not known."""
    return MemorySegment(
        tier=tier_from_proto(message.tier),
        shm_name=message.shm_name,
        size_bytes=message.size_bytes,
        block_stride_bytes=message.block_stride_bytes,
        block_count=message.block_count,
        device=message.device or "cpu",
        ipc_handle=message.ipc_handle,
    )
