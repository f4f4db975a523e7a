"""KvCacheService: proto to node, one call, node to proto."""

from __future__ import annotations  # grpc's context is generic for the type checker only

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from grpc.aio import ServicerContext
from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

from forebay.errors import (
    DiskFailedError,
    InvalidFieldError,
    KvExhaustedError,
    LayoutMismatchError,
    ModelMismatchError,
    NotServedYetError,
    StaleEpochError,
    UnknownSequenceError,
)
from forebay.kv.eviction.policies import DEFAULT_POLICY, PolicyName
from forebay.kv.grant import Grant
from forebay.kv.layout import KvLayout
from forebay.kv.segment import MemorySegment
from forebay.kvcache.disk.store import DiskStats
from forebay.kvcache.node import KvNode
from forebay.kvcache.transfer.bringer import Bringer
from forebay.rpc.status import to_failure
from forebay.telemetry import extract, span, spans
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc, pull_pb2, upkeep_pb2
from forebay.wire import kv_rights as wire
from forebay.wire.bring_request import checked_wish
from forebay.wire.kv_index import entry_to_proto
from forebay.wire.layout import layout_from_proto, layout_to_proto
from forebay.wire.tier import tier_to_proto

MAX_HASHES = 65_536
LONGEST_PIN_S = 86_400.0
DUMP_PAGE_ENTRIES = 4096
RENEWALS_PER_LEASE = 4
"""A worker that misses two heartbeats still has its lease."""


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """What workers and readers must know of this service, and what it asks of them."""

    node_id: str
    incarnation: int
    model_digest: str
    layout: KvLayout
    arithmetic: str
    lease_s: float
    segments: tuple[MemorySegment, ...]  # that workers map
    disk_wait_s: float = 0.5  # most seconds that a sequence waits for its prefix to come from disk
    eviction_policy: PolicyName = DEFAULT_POLICY


class KvCacheServicer(kvcache_pb2_grpc.KvCacheServiceServicer):
    """Serves one node, all but PullBlocks, which BlockSource serves.

    disk: counts of the DISK tier, if there is one.
    """

    def __init__(
        self,
        node: KvNode,
        identity: NodeIdentity,
        bringer: Bringer,
        disk: Callable[[], DiskStats] | None = None,
    ) -> None:
        self._bringer = bringer
        self._disk = disk
        self._verifying = asyncio.Lock()
        self._node = node
        self._identity = identity

    async def AttachWorker(
        self, request: kvcache_pb2.AttachWorkerRequest, context: ServicerContext[Any, Any]
    ) -> AsyncIterator[kvcache_pb2.AttachWorkerResponse]:
        with span(spans.KV_ATTACH, {spans.WORKER_ID: request.worker_id}):  # not the whole stream, which lives for days
            process = wire.checked_process(request)
            self._check_match(request)
            attachment_id, news = self._node.attach(process)
        try:
            yield kvcache_pb2.AttachWorkerResponse(attached=self._attached(attachment_id))
            while (one := await news.get()) is not None:
                yield wire.news_to_proto(one)
        finally:
            self._node.detach(attachment_id, process)

    async def AcquireBlocks(
        self, request: kvcache_pb2.AcquireBlocksRequest, context: ServicerContext[Any, Any]
    ) -> kvcache_pb2.AcquireBlocksResponse:
        wire.check_id(request.sequence_id, "sequence_id")
        try:
            grant = await self._granted(request)
        except KvExhaustedError:
            if request.HasField("priority"):
                self._node.tell_short(request.attachment_id, request.priority)
            raise
        if request.request_number and request.WhichOneof("grant") != "extend":
            self._node.note_request(request.sequence_id, grant.epoch, request.request_number)
        copied_bytes = grant.promoted_block_count * self._identity.layout.block_bytes
        get_current_span().set_attributes(
            {
                spans.REQUEST_ID: request.sequence_id,
                spans.KV_BLOCKS: len(grant.block_ids),
                spans.KV_CACHED_BLOCKS: grant.cached_block_count,
                spans.KV_COPIED_BYTES: copied_bytes,
                spans.KV_EPOCH: grant.epoch,
            }
        )
        return kvcache_pb2.AcquireBlocksResponse(
            epoch=grant.epoch,
            block_ids=grant.block_ids,
            cached_block_count=grant.cached_block_count,
            copied_bytes=copied_bytes,
            promoted_block_count=grant.promoted_block_count,
        )

    async def SealBlocks(
        self, request: kvcache_pb2.SealBlocksRequest, context: ServicerContext[Any, Any]
    ) -> kvcache_pb2.SealBlocksResponse:
        results = [self._sealed(request.attachment_id, entry) for entry in request.entries]
        get_current_span().set_attribute(spans.KV_BLOCKS, sum(len(entry.block_hashes) for entry in request.entries))
        return kvcache_pb2.SealBlocksResponse(results=results)

    async def FindMissingBlocks(
        self, request: kvcache_pb2.FindMissingBlocksRequest, context: ServicerContext[Any, Any]
    ) -> kvcache_pb2.FindMissingBlocksResponse:
        found = [(one, self._node.find(one)) for one in _some_hashes(request.block_hashes)]
        return kvcache_pb2.FindMissingBlocksResponse(
            missing_block_hashes=[one for one, tier in found if tier is None],
            held_blocks=[
                kvcache_pb2.HeldBlock(block_hash=one, tier=tier_to_proto(tier))
                for one, tier in found
                if tier is not None
            ],
        )

    async def ReleaseSequence(
        self, request: kvcache_pb2.ReleaseSequenceRequest, context: ServicerContext[Any, Any]
    ) -> kvcache_pb2.ReleaseSequenceResponse:
        unheard = [(one.sequence_id, one.request_number) for one in request.unheard]
        sequences, parked = wire.sequence_epochs(request.sequences), wire.sequence_epochs(request.parked)
        count = self._node.release(request.attachment_id, sequences, unheard, parked)
        return kvcache_pb2.ReleaseSequenceResponse(released_count=count)

    async def RenewLease(
        self, request: kvcache_pb2.RenewLeaseRequest, context: ServicerContext[Any, Any]
    ) -> kvcache_pb2.RenewLeaseResponse:
        last_answer = request.last_answer if request.HasField("last_answer") else None
        renewal = self._node.renew(request.attachment_id, wire.sequence_epochs(request.sequences), last_answer)
        return kvcache_pb2.RenewLeaseResponse(lost_sequence_ids=renewal.lost, answer_number=renewal.number)

    async def GetStats(
        self, request: kvcache_pb2.GetStatsRequest, context: ServicerContext[Any, Any]
    ) -> kvcache_pb2.GetStatsResponse:
        stats = self._node.stats()
        disk = None if self._disk is None else self._disk()
        return kvcache_pb2.GetStatsResponse(
            node_id=self._identity.node_id,
            tiers=map(wire.tier_stats, stats.tiers),
            active_sequences=stats.sequences,
            attached_workers=stats.attachments,
            tier_copied_bytes=self._node.copied_bytes,
            prefix_blocks_asked=stats.prefix_blocks_asked,
            prefix_blocks_found=stats.prefix_blocks_found,
            evicted_blocks=stats.evicted_blocks,
            flushed_blocks=stats.flushed_blocks,
            lost_blocks=stats.lost_blocks,
            eviction_policy=self._identity.eviction_policy,
            block_bytes=self._identity.layout.block_bytes,
            take_overs=stats.take_overs,
            layout=layout_to_proto(self._identity.layout),
            model_digest=self._identity.model_digest,
            arithmetic=self._identity.arithmetic,
            pinned_blocks=self._node.pinned_count,
            disk_failure=None if disk is None else disk.failure,
            disk_read_blocks=0 if disk is None else disk.read_count,
            disk_written_blocks=0 if disk is None else disk.written_count,
            disk_corrupt_blocks=0 if disk is None else disk.corrupt_count,
        )

    async def DumpIndex(
        self, request: kvcache_pb2.DumpIndexRequest, context: ServicerContext[Any, Any]
    ) -> AsyncIterator[kvcache_pb2.DumpIndexResponse]:
        snapshot = self._node.snapshot()
        entries = [(one, tier) for tier, hashes in snapshot.hashes.items() for one in hashes]
        # An empty index has one empty page: its number matters all the same.
        for start in range(0, max(1, len(entries)), DUMP_PAGE_ENTRIES):
            yield kvcache_pb2.DumpIndexResponse(
                last_event_number=snapshot.last_event_number,
                incarnation=self._identity.incarnation,
                entries=[entry_to_proto(one, tier) for one, tier in entries[start : start + DUMP_PAGE_ENTRIES]],
            )

    async def BringBlocks(
        self, request: pull_pb2.BringBlocksRequest, context: ServicerContext[Any, Any]
    ) -> AsyncIterator[pull_pb2.BringBlocksResponse]:
        wish = checked_wish(request)
        plan = self._bringer.planned(wish)
        async with self._bringer.brought(wish, plan, _trace_of(context)) as brought:
            failure = None if brought.failure is None else to_failure(brought.failure)
            yield pull_pb2.BringBlocksResponse(
                held_blocks=brought.held_count, transfer_bytes=brought.transfer_bytes, failure=failure
            )
            await asyncio.get_running_loop().create_future()  # until the caller ends the call

    async def PullBlocks(
        self, request_iterator: AsyncIterator[pull_pb2.PullBlocksRequest], context: ServicerContext[Any, Any]
    ) -> AsyncIterator[pull_pb2.PullBlocksResponse]:
        nothing: tuple[pull_pb2.PullBlocksResponse, ...] = ()
        for response in nothing:  # makes this the stream it would be
            yield response
        raise NotServedYetError("a BlockSource serves this, where there is one")

    async def PrefetchBlocks(
        self, request: upkeep_pb2.PrefetchBlocksRequest, context: ServicerContext[Any, Any]
    ) -> upkeep_pb2.PrefetchBlocksResponse:
        accepted_count = self._node.blocks.prefetch(_some_hashes(request.block_hashes))
        return upkeep_pb2.PrefetchBlocksResponse(accepted_blocks=accepted_count)

    async def PinBlocks(
        self, request: upkeep_pb2.PinBlocksRequest, context: ServicerContext[Any, Any]
    ) -> upkeep_pb2.PinBlocksResponse:
        hashes = _some_hashes(request.block_hashes)
        if not 0 < request.ttl_s <= LONGEST_PIN_S:
            raise InvalidFieldError(
                f"a pin lasts more than 0 s and at most {LONGEST_PIN_S:g} s, not {request.ttl_s:g} s", field="ttl_s"
            )
        return upkeep_pb2.PinBlocksResponse(missing_block_hashes=self._node.pin(hashes, request.ttl_s))

    async def UnpinBlocks(
        self, request: upkeep_pb2.UnpinBlocksRequest, context: ServicerContext[Any, Any]
    ) -> upkeep_pb2.UnpinBlocksResponse:
        hashes = _some_hashes(request.named.block_hashes)
        if not request.all and not request.HasField("named"):
            raise InvalidFieldError("say which pins are to end: named ones, or all", field="pins")
        return upkeep_pb2.UnpinBlocksResponse(unpinned_blocks=self._node.unpin(None if request.all else hashes))

    async def FlushBlocks(
        self, request: upkeep_pb2.FlushBlocksRequest, context: ServicerContext[Any, Any]
    ) -> upkeep_pb2.FlushBlocksResponse:
        return upkeep_pb2.FlushBlocksResponse(removed_blocks=await self._node.flush())

    async def VerifyBlocks(
        self, request: upkeep_pb2.VerifyBlocksRequest, context: ServicerContext[Any, Any]
    ) -> upkeep_pb2.VerifyBlocksResponse:
        failure = None if self._disk is None else self._disk().failure
        if failure is not None:
            raise DiskFailedError(failure)
        async with self._verifying:  # one at a time: they share a buffer
            verified_count, corrupt_count = await self._node.verify()
        return upkeep_pb2.VerifyBlocksResponse(verified_blocks=verified_count, corrupt_blocks=corrupt_count)

    def _check_match(self, request: kvcache_pb2.AttachWorkerRequest) -> None:
        ours = self._identity
        if request.model_digest != ours.model_digest:
            raise ModelMismatchError(
                f"the worker's model has digest {request.model_digest}, this node's {ours.model_digest}",
                field="model_digest",
            )
        if request.arithmetic != ours.arithmetic:
            raise ModelMismatchError(
                f"the worker computes KV as {request.arithmetic or 'an unnamed chip class'} does, this node keeps that"
                f" of {ours.arithmetic}",
                field="arithmetic",
            )
        layout = layout_from_proto(request.layout)
        if layout != ours.layout:
            raise LayoutMismatchError(
                f"the worker's KV is not laid out as this node's: {layout.differences(ours.layout)}", field="layout"
            )

    def _attached(self, attachment_id: int) -> kvcache_pb2.Attached:
        return kvcache_pb2.Attached(
            attachment_id=attachment_id,
            node_id=self._identity.node_id,
            segments=map(wire.segment_to_proto, self._identity.segments),
            lease_s=self._identity.lease_s,
            renew_interval_s=self._identity.lease_s / RENEWALS_PER_LEASE,
        )

    async def _granted(self, request: kvcache_pb2.AcquireBlocksRequest) -> Grant:
        attachment_id, sequence_id = request.attachment_id, request.sequence_id
        match request.WhichOneof("grant"):
            case "new_sequence":
                return await self._begun(attachment_id, sequence_id, request.new_sequence)
            case "take_over":
                return self._node.take_over(attachment_id, sequence_id, wire.take_over_from_proto(request.take_over))
            case "extend":
                get_current_span().update_name(spans.KV_EXTEND)
                extend = request.extend
                return self._node.extend(attachment_id, sequence_id, extend.epoch, extend.block_count)
            case _:
                raise InvalidFieldError("exactly one of new_sequence, take_over and extend must be set", field="grant")

    async def _begun(self, attachment_id: int, sequence_id: str, new: kvcache_pb2.NewSequence) -> Grant:
        hashes = wire.checked_hashes(new.prefix_hashes, "new_sequence.prefix_hashes")
        if new.tenant:
            wire.check_id(new.tenant, "new_sequence.tenant")
        if not self._node.blocks.needs_fetch(hashes):
            return self._node.begin(attachment_id, sequence_id, hashes, new.block_count, new.tenant)
        async with self._node.blocks.fetched(hashes, self._identity.disk_wait_s):
            return self._node.begin(attachment_id, sequence_id, hashes, new.block_count, new.tenant)

    def _sealed(self, attachment_id: int, entry: kvcache_pb2.SealEntry) -> kvcache_pb2.SealResult:
        try:
            sealed = self._node.seal(attachment_id, wire.seal_entry(entry))
        except (StaleEpochError, UnknownSequenceError, InvalidFieldError) as error:
            return kvcache_pb2.SealResult(epoch=entry.epoch, error_reason=error.reason)
        return kvcache_pb2.SealResult(epoch=sealed.epoch)


def _some_hashes(hashes: Sequence[bytes]) -> list[bytes]:
    if len(hashes) > MAX_HASHES:
        raise InvalidFieldError(f"at most {MAX_HASHES} blocks can be named at once", field="block_hashes")
    return wire.checked_hashes(hashes, "block_hashes")


def _trace_of(context: ServicerContext[Any, Any]) -> Context:
    metadata = context.invocation_metadata() or ()
    return extract({key: value for key, value in metadata if isinstance(value, str)})
