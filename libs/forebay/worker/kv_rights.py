"""The worker's side of the KV-cache service: which blocks it may write, asked for, given up and handed over.

Knows sequences by id and epoch. Every call has a deadline; an answer that comes after its caller was cancelled is given
back. Sealing and releasing wait for nobody: they are collected, sent at once, and tried again (see `kv_outbox`).
"""

import asyncio
import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from forebay.errors import (
    RETRY_AFTER_S,
    DeadlineExceededError,
    NotAttachedError,
    RemoteError,
    StaleEpochError,
    UnknownSequenceError,
    WorkerLostError,
)
from forebay.rpc.deadline import limited_to
from forebay.rpc.status import translated
from forebay.v1 import common_pb2, kvcache_pb2
from forebay.worker.attachment import Attachment, KvLink
from forebay.worker.bringing import Bringing
from forebay.worker.kv_outbox import KvOutbox

_log = logging.getLogger(__name__)

CALL_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class BlockGrant:
    """The right to write a sequence's blocks.

    block_ids: the whole table; its first cached_block_count hold the prefix and are sealed; copied_bytes: what the
    service copied for this grant.
    """

    epoch: int
    block_ids: tuple[int, ...]
    cached_block_count: int
    copied_bytes: int


class KvRights:
    """Rights of one worker, over its link."""

    def __init__(self, link: KvLink) -> None:
        self._link = link
        self._outbox = KvOutbox(link)
        self._calls: set[asyncio.Task[BlockGrant]] = set()
        self._request_numbers = itertools.count(1)
        self._hand_overs: dict[str, tuple[int, asyncio.Task[int]]] = {}  # by sequence id: epoch before, answer

    def start(self) -> None:
        """Begins to send what waits for nobody. Needs a running loop."""
        self._outbox.start()

    @property
    def device_block_count(self) -> int:
        """Blocks of the DEVICE tier. Raises WorkerLostError while not attached."""
        return self._attachment().device_block_count

    async def acquire(
        self, sequence_id: str, prefix_hashes: list[bytes], block_count: int, tenant: str = "", priority: int = 0
    ) -> BlockGrant:
        """Begins a sequence with so many blocks, those found by their hashes included.

        priority: 0 the most urgent; where there are too few blocks, other workers are asked to park what is less so.
        Raises KvExhaustedError, TenantQuotaError, DuplicateRequestError, WriterActiveError, DrainingError,
        WorkerLostError.
        """
        new = kvcache_pb2.NewSequence(prefix_hashes=prefix_hashes, block_count=block_count, tenant=tenant)
        request = kvcache_pb2.AcquireBlocksRequest(sequence_id=sequence_id, new_sequence=new, priority=priority)
        return await self._begin(request)

    def epoch_of(self, sequence_id: str) -> int:
        """Of the right to a sequence; 0: there is none."""
        return self._link.owned_epochs.get(sequence_id, 0)

    def bring(self, source: common_pb2.Manifest, block_hashes: list[bytes]) -> Bringing:
        """Has blocks of another node brought to this one; the caller closes it."""
        return Bringing(self._link.stub, source, block_hashes)

    async def take_over(
        self, sequence_id: str, epoch: int, block_count: int, sealed_count: int | None = None
    ) -> BlockGrant:
        """Takes a handed-over sequence, with at least so many blocks (0: as many as it has).

        sealed_count: most of them that are to be sealed; None: all that are.

        Raises KvExhaustedError, StaleEpochError, UnknownSequenceError, WriterActiveError, DrainingError and
        WorkerLostError.
        """
        take_over = kvcache_pb2.TakeOver(epoch=epoch, block_count=block_count, sealed_blocks=sealed_count)
        return await self._begin(kvcache_pb2.AcquireBlocksRequest(sequence_id=sequence_id, take_over=take_over))

    async def extend(self, sequence_id: str, block_count: int, priority: int | None = None) -> BlockGrant:
        """Adds so many blocks to a sequence of this worker. Raises KvExhaustedError, WorkerLostError.

        priority: as in `acquire`; None: nobody is asked to park anything.
        """
        extend = kvcache_pb2.Extend(epoch=self._epoch(sequence_id), block_count=block_count)
        request = kvcache_pb2.AcquireBlocksRequest(sequence_id=sequence_id, extend=extend, priority=priority)
        try:
            grant = await self._ask(request, self._attachment())
        except (StaleEpochError, UnknownSequenceError):
            self._link.lose([sequence_id])
            raise lost() from None
        if self._link.owned_epochs.get(sequence_id) != grant.epoch:
            raise lost()
        return grant

    async def hand_over(self, sequence_id: str, first_block_index: int, block_hashes: list[bytes]) -> int:
        """Seals these blocks and stops writing; returns the epoch with which another worker takes the sequence over.

        Raises WorkerLostError. Whatever happens, `release` or `give_away` must follow.
        """
        epoch = self._epoch(sequence_id)
        entry = kvcache_pb2.SealEntry(
            sequence_id=sequence_id,
            epoch=epoch,
            first_block_index=first_block_index,
            block_hashes=block_hashes,
            hand_over=True,
        )
        request = kvcache_pb2.SealBlocksRequest(attachment_id=self._attachment().attachment_id, entries=[entry])
        self._outbox.forget_seals(sequence_id)  # named here again, and refused once this is done
        del self._link.owned_epochs[sequence_id]  # not renewed any more: the service would call it lost
        task = asyncio.create_task(self._hand_over(request))
        self._hand_overs[sequence_id] = (epoch, task)
        return await asyncio.shield(task)  # a cancel must not hide the new epoch, which `release` needs

    def seal(self, sequence_id: str, first_block_index: int, block_hashes: list[bytes], *, at_once: bool) -> None:
        """Makes full blocks findable, in the background; when not at once, with the next that are or soon after."""
        if sequence_id in self._link.owned_epochs:
            epoch = self._epoch(sequence_id)
            self._outbox.seal(sequence_id, epoch, first_block_index, block_hashes, at_once=at_once)

    def release(self, sequence_id: str) -> None:
        """Gives a sequence up, in the background. The caller does not write to its blocks any more. Idempotent."""
        # Lost ones too: the service keeps them from others until it knows that this worker has stopped writing.
        for epochs in (self._link.owned_epochs, self._link.lost_epochs):
            if sequence_id in epochs:
                self._outbox.release(sequence_id, epochs.pop(sequence_id))
        old_epoch, task = self._hand_overs.pop(sequence_id, (0, None))
        if task is not None:
            task.add_done_callback(lambda done: self._release_offered(sequence_id, old_epoch, done))

    async def park(self, sequence_id: str) -> None:
        """Gives up a sequence that is to begin again later; its sealed blocks are kept as far as there is room.

        Returns when it may begin again. Raises WorkerLostError when it was lost meanwhile.
        """
        epoch = self._epoch(sequence_id)
        del self._link.owned_epochs[sequence_id]  # not renewed any more: the service would call it lost
        await self._outbox.park(sequence_id, epoch)

    def give_away(self, sequence_id: str) -> None:
        """The sequence, handed over, is its next owner's to take."""
        self._hand_overs.pop(sequence_id, None)

    def decline(self, sequence_id: str, epoch: int) -> None:
        """Releases an offer that will not be taken over; ignored by the service when it was taken."""
        self._outbox.release(sequence_id, epoch)

    def owns(self, sequence_id: str) -> bool:
        """Whether the worker holds rights to this sequence."""
        return sequence_id in self._link.owned_epochs

    async def close(self) -> None:
        """Sends what is still to be released, for a moment, and stops."""
        await self._outbox.close()

    def _attachment(self) -> Attachment:
        if self._link.attachment is None:
            raise lost()
        return self._link.attachment

    def _epoch(self, sequence_id: str) -> int:
        try:
            return self._link.owned_epochs[sequence_id]
        except KeyError:
            raise lost() from None

    async def _begin(self, request: kvcache_pb2.AcquireBlocksRequest) -> BlockGrant:
        """Acquires; when cancelled meanwhile, gives back what is granted after all."""
        task = asyncio.create_task(self._acquire(request))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: self._release_granted(request.sequence_id, done))
            raise

    async def _acquire(self, request: kvcache_pb2.AcquireBlocksRequest) -> BlockGrant:
        """Makes a sequence this worker's."""
        attachment, asked_s = self._attachment(), self._link.clock()
        request.request_number = next(self._request_numbers)
        try:
            grant = await self._ask(request, attachment)
        except WorkerLostError:  # nobody knows whether it was granted
            if not self._may_be_writing(request.sequence_id):
                self._outbox.release_unheard(request.sequence_id, request.request_number)
            raise
        if self._link.attachment is not attachment:
            raise lost()
        if self._link.clock() - asked_s >= attachment.lease_s:
            # The service may have taken it back, because the heartbeats since then did not name it.
            self._outbox.release(request.sequence_id, grant.epoch)
            raise lost()
        self._link.owned_epochs[request.sequence_id] = grant.epoch
        return grant

    def _may_be_writing(self, sequence_id: str) -> bool:
        return sequence_id in self._link.owned_epochs or sequence_id in self._link.lost_epochs

    async def _ask(self, request: kvcache_pb2.AcquireBlocksRequest, attachment: Attachment) -> BlockGrant:
        request.attachment_id = attachment.attachment_id
        with self._answered():
            response = await self._link.stub.AcquireBlocks(request, timeout=CALL_TIMEOUT_S)
        return BlockGrant(
            epoch=response.epoch,
            block_ids=tuple(response.block_ids),
            cached_block_count=response.cached_block_count,
            copied_bytes=response.copied_bytes,
        )

    async def _hand_over(self, request: kvcache_pb2.SealBlocksRequest) -> int:
        with self._answered():
            response = await self._link.stub.SealBlocks(request, timeout=CALL_TIMEOUT_S)
        (result,) = response.results
        if result.HasField("error_reason"):
            _log.warning("a sequence could not be handed over: %s", result.error_reason)
            raise lost()
        return result.epoch

    def _release_granted(self, sequence_id: str, task: "asyncio.Task[BlockGrant]") -> None:
        if not task.cancelled() and task.exception() is None:
            self.release(sequence_id)

    def _release_offered(self, sequence_id: str, old_epoch: int, task: "asyncio.Task[int]") -> None:
        # A failed hand-over may have happened or not: a wrong epoch is ignored, and an unclaimed offer runs out.
        has_failed = task.cancelled() or task.exception() is not None
        self._outbox.release(sequence_id, old_epoch if has_failed else task.result())

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Around one call: its own deadline, not its request's, and its failures as the worker's callers know them.

        A call cut off by the request's deadline would leave open whether the right was granted.
        """
        try:
            with limited_to(None), translated():
                yield
        except NotAttachedError:
            self._link.detach()
            raise lost() from None
        except (DeadlineExceededError, RemoteError) as error:
            _log.warning("the KV-cache service did not answer: %s", error.message)
            raise lost() from None


def lost() -> WorkerLostError:
    """What a request is told when this worker's rights to its blocks are gone."""
    return WorkerLostError("the worker lost its KV blocks", retry_after_s=RETRY_AFTER_S)
