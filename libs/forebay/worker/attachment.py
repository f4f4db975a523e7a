"""A worker's attachment to its node's KV-cache service: kept open, renewed, and made again when the service comes back.

Knows which sequences the worker owns, and tells its listener when it owns them no more. Not what they are for.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from forebay.errors import (
    ForebayError,
    InvalidFieldError,
    LayoutMismatchError,
    ModelMismatchError,
    NotAttachedError,
    StartError,
)
from forebay.host.process_identity import ProcessIdentity
from forebay.kv.layout import KvLayout
from forebay.kv.segment import MemorySegment
from forebay.kv.tier import Tier
from forebay.role import Role
from forebay.rpc.channel import open_channel
from forebay.rpc.status import translated
from forebay.tasks import end_task
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc
from forebay.wire.kv_rights import segment_from_proto
from forebay.wire.layout import layout_to_proto
from forebay.wire.role import role_to_proto

_log = logging.getLogger(__name__)

RETRY_INTERVAL_S: Final = 0.2
ATTACH_TIMEOUT_S: Final = 30.0
"""How long a starting worker waits for the service to be reachable."""
_OPEN_ENDED_S: Final = 10 * 365 * 86_400.0  # the stream lives as long as the worker


@dataclass(frozen=True, slots=True)
class Attachment:
    """What the service answered: where the memory is, and how long a right lasts without renewal."""

    attachment_id: int
    node_id: str
    segments: tuple[MemorySegment, ...]
    lease_s: float
    renew_interval_s: float

    @property
    def device_block_count(self) -> int:
        """Blocks of the DEVICE tier."""
        return sum(one.block_count for one in self.segments if one.tier is Tier.DEVICE)


class AttachmentListener(Protocol):
    """Who must act on news of the attachment; called on the event loop, must not block."""

    def on_attached(self, attachment: Attachment) -> None:
        """Attached again: the memory may be other memory than before. Not called for the first time."""
        ...

    def on_detached(self) -> None:
        """The attachment has ended, and with it every right to the memory, whose service may be gone."""
        ...

    def on_lost(self, sequence_ids: frozenset[str]) -> None:
        """These are not this worker's any more: it MUST NOT begin another step that writes to them."""
        ...

    def on_short(self, priority: int) -> None:
        """Another worker of the node was refused blocks for something so urgent, 0 the most."""
        ...


def attach_request(
    worker_id: str, role: Role, model_digest: str, layout: KvLayout, arithmetic: str
) -> kvcache_pb2.AttachWorkerRequest:
    """This process, introduced. arithmetic: that of its chip class."""
    process = ProcessIdentity.current()
    return kvcache_pb2.AttachWorkerRequest(
        worker_id=worker_id,
        pid=process.pid,
        process_start_ticks=process.start_ticks,
        role=role_to_proto(role),
        model_digest=model_digest,
        layout=layout_to_proto(layout),
        arithmetic=arithmetic,
    )


class KvLink:
    """Attached from `open` to `close`, but for the times when the service is away.

    Invariant: is_lease_valid() is false before any right could be given to another worker.
    """

    def __init__(
        self,
        address: str,
        request: kvcache_pb2.AttachWorkerRequest,
        listener: AttachmentListener,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        self.attachment: Attachment | None = None
        self.owned_epochs: dict[str, int] = {}  # by sequence id
        self.lost_epochs: dict[str, int] = {}  # of sequences that a step may still be writing to
        self._request = request
        self._listener = listener
        self.clock = clock
        self._lease_ends_s = float("-inf")
        self._channel = open_channel(address)
        self.stub = kvcache_pb2_grpc.KvCacheServiceStub(self._channel)
        self._task: asyncio.Task[None] | None = None
        self._stream_task: asyncio.Task[None] | None = None

    def is_lease_valid(self) -> bool:
        """Whether the worker may write now. Callable from any thread."""
        return self.clock() < self._lease_ends_s

    async def open(self, timeout_s: float = ATTACH_TIMEOUT_S) -> Attachment:
        """Attaches for the first time. Raises StartError when refused, or when the service stays away."""
        first: asyncio.Future[Attachment] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_attached(first), name="kv-attachment")
        try:
            async with asyncio.timeout(timeout_s):
                return await first
        except TimeoutError:
            await self.close()
            raise StartError(
                f"the KV-cache service at {self.address} did not answer in {timeout_s:g} s; start it or check --kvcache"
            ) from None
        except StartError:
            await self.close()
            raise

    def detach(self) -> None:
        """Gives this attachment up, because the service does not know it any more; a new one follows."""
        if self._stream_task is not None:
            self._stream_task.cancel()

    def lose(self, sequence_ids: Iterable[str]) -> None:
        """Forgets sequences that another may own by now, and tells the listener."""
        lost = frozenset(sequence_ids) & self.owned_epochs.keys()
        for sequence_id in lost:
            self.lost_epochs[sequence_id] = self.owned_epochs.pop(sequence_id)
        if lost:
            _log.warning("lost the right to %d sequences", len(lost))
            self._listener.on_lost(lost)

    async def close(self) -> None:
        """Ends the attachment."""
        for task in (self._task, self._stream_task):
            if task is not None:
                await end_task(task)
        await self._channel.close()

    async def _keep_attached(self, first: "asyncio.Future[Attachment]") -> None:
        reported = ""
        while True:
            stream_task = self._stream_task = asyncio.create_task(self._attach_once(first), name="kv-stream")
            try:
                await asyncio.wait([stream_task])
            finally:
                self._end_attachment()
            error = None if stream_task.cancelled() else stream_task.exception()
            if not first.done() and isinstance(error, ModelMismatchError | LayoutMismatchError | InvalidFieldError):
                first.set_exception(StartError(_refusal(self.address, error)))
                return
            problem = "the attachment ended" if error is None else str(error)
            if problem != reported:
                _log.warning("not attached to the KV-cache service at %s: %s; trying again", self.address, problem)
                reported = problem
            await asyncio.sleep(RETRY_INTERVAL_S)

    def _end_attachment(self) -> None:
        was_attached = self.attachment is not None
        self._lease_ends_s = float("-inf")
        self.attachment = None
        self.lose(list(self.owned_epochs))
        if was_attached:
            self._listener.on_detached()

    async def _attach_once(self, first: "asyncio.Future[Attachment]") -> None:
        asked_s = self.clock()
        renewal: asyncio.Task[None] | None = None
        call = self.stub.AttachWorker(self._request, timeout=_OPEN_ENDED_S)
        try:
            with translated():
                async for response in call:
                    if response.HasField("revoked"):
                        self.lose(response.revoked.sequence_ids)
                        continue
                    if response.HasField("shortage"):
                        self._listener.on_short(response.shortage.priority)
                        continue
                    attachment = _to_attachment(response.attached)
                    self._lease_ends_s = asked_s + attachment.lease_s
                    self.attachment = attachment
                    renewal = asyncio.create_task(self._renew(attachment), name="kv-renewal")
                    if first.done():
                        self._listener.on_attached(attachment)
                    else:
                        first.set_result(attachment)
        finally:
            if renewal is not None:
                renewal.cancel()
            call.cancel()

    async def _renew(self, attachment: Attachment) -> None:
        """Renews until the service says that it does not know us, or the lease has run out unanswered."""
        last_answer: int | None = None
        while True:
            await asyncio.sleep(attachment.renew_interval_s)
            asked_s = self.clock()
            request = kvcache_pb2.RenewLeaseRequest(
                attachment_id=attachment.attachment_id,
                # Lost ones too: a step may still write to them, and what is not named is given to others.
                sequences=sequence_epochs((self.lost_epochs | self.owned_epochs).items()),
                last_answer=last_answer,
            )
            try:
                with translated():
                    response = await self.stub.RenewLease(request, timeout=attachment.renew_interval_s)
            except NotAttachedError:
                self.detach()
            except ForebayError as error:
                _log.warning("the KV lease was not renewed: %s", error.message)
                if not self.is_lease_valid():
                    self.detach()
            else:
                last_answer = response.answer_number
                asked = {one.sequence_id: one.epoch for one in request.sequences}
                # A sequence that was released and began anew meanwhile is not the one the answer is about.
                self.lose(one for one in response.lost_sequence_ids if self.owned_epochs.get(one) == asked.get(one))
                self._lease_ends_s = asked_s + attachment.lease_s


def sequence_epochs(epochs: Iterable[tuple[str, int]]) -> list[kvcache_pb2.SequenceEpoch]:
    """Pairs of sequence id and epoch, as the service wants them."""
    return [kvcache_pb2.SequenceEpoch(sequence_id=one, epoch=epoch) for one, epoch in epochs]


def _to_attachment(attached: kvcache_pb2.Attached) -> Attachment:
    return Attachment(
        attachment_id=attached.attachment_id,
        node_id=attached.node_id,
        segments=tuple(map(segment_from_proto, attached.segments)),
        lease_s=attached.lease_s,
        renew_interval_s=attached.renew_interval_s,
    )


def _refusal(address: str, error: ForebayError) -> str:
    if isinstance(error, LayoutMismatchError) or error.field == "arithmetic":
        advice = "start it and its workers with --chip-class of one kind, such as cpu-compute and cpu-bandwidth"
    elif isinstance(error, ModelMismatchError):
        advice = "start it and its workers with the same --model"
    else:
        advice = "this worker and the service are of different versions"
    return f"the KV-cache service at {address} refused this worker: {error.message}; {advice}"
