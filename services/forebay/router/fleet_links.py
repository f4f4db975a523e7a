"""Connections to every member of the fleet, kept equal to the fleet view, and the snapshot that planning sees.

Knows who can be reached. Does not know requests.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from forebay.chips.chip_class import BUILT_IN
from forebay.errors import UnknownWorkerError
from forebay.fleet.member import Member
from forebay.role import Role
from forebay.router.decode_link import DecodeLink
from forebay.router.prefetch_hints import PrefetchHints
from forebay.router.prefill_link import PrefillLink
from forebay.router.tokenizers import Tokenizers
from forebay.routing.fleet import FleetSnapshot, NodeCache, Refusal, Worker, select
from forebay.rpc.channel import open_channel
from forebay.tasks import end_task
from forebay.v1 import kvcache_pb2_grpc, worker_pb2_grpc

_log = logging.getLogger(__name__)

_WORKER_ROLES = frozenset({Role.PREFILL, Role.DECODE})


@dataclass(slots=True)
class _Connected:
    member: Member
    channel: grpc.aio.Channel
    decode: DecodeLink | None = None
    prefill: PrefillLink | None = None
    kvcache: "kvcache_pb2_grpc.KvCacheServiceAsyncStub | None" = None

    @property
    def is_usable(self) -> bool:
        return all(link is None or link.is_usable for link in (self.decode, self.prefill))

    def lose(self) -> None:
        """Fails what runs there."""
        for link in (self.decode, self.prefill):
            if link is not None:
                link.lose()


class FleetLinks:
    """Call `update` after each change of the fleet."""

    def __init__(self) -> None:
        self.tokenizers = Tokenizers(self._refresh)
        self.hints = PrefetchHints(self.kvcache)
        self.snapshot = FleetSnapshot()
        self._connected: dict[str, _Connected] = {}
        self._refused: frozenset[Refusal] = frozenset()
        self._closing: set[asyncio.Task[None]] = set()
        self._lost_at_s: float | None = None  # when a worker that served could be reached no more
        self._shut: frozenset[str] = frozenset()

    def update(self, members: Mapping[str, Member]) -> None:
        """The fleet is this now."""
        self.tokenizers.update(member for member in members.values() if member.role is Role.TOKENIZER)
        wanted = {
            worker_id: member
            for worker_id, member in members.items()
            if member.role in _WORKER_ROLES or member.role is Role.KVCACHE
        }
        for worker_id in self._connected.keys() - wanted.keys():
            gone = self._connected.pop(worker_id)
            if not gone.member.is_draining:
                gone.lose()  # it did not say good-bye: what runs there may hang for ever
            self._spawn(self._close_when_idle(gone))
        for worker_id, member in wanted.items():
            known = self._connected.get(worker_id)
            if known is None:
                self._connected[worker_id] = self._connect(member)
            else:
                known.member = member
        self._refresh()

    def shut(self, worker_ids: frozenset[str]) -> None:
        """These get no further work, as long as others of their role can do it; what runs there goes on."""
        if worker_ids != self._shut:
            self._shut = worker_ids
            self._refresh()

    def has_lost_worker_within(self, seconds: float) -> bool:
        """Whether a worker ended, or could be reached no more, without having drained, so short a time ago."""
        return self._lost_at_s is not None and time.monotonic() - self._lost_at_s < seconds

    def decode(self, worker_id: str) -> DecodeLink:
        """The link to a decode worker of the snapshot."""
        link = self._connected[worker_id].decode
        assert link is not None
        return link

    def node_of(self, worker_id: str) -> str:
        """The node of a worker of the snapshot."""
        return self._connected[worker_id].member.node_id

    def taker(self, worker_id: str, node_id: str) -> DecodeLink | None:
        """Who decodes a sequence that was planned for a decode worker of a node.

        That one, or another of the node's when it leaves or has left; None when there is none.
        """

        def rank(worker: Worker) -> tuple[bool, bool, int]:
            is_other = worker.worker_id != worker_id
            return worker.is_draining, is_other, self.decode(worker.worker_id).sequence_count

        on_node = [worker for worker in self.snapshot.decode if worker.node_id == node_id]
        return self.decode(min(on_node, key=rank).worker_id) if on_node else None

    def prefill(self, worker_id: str) -> PrefillLink:
        """The link to a prefill worker of the snapshot."""
        link = self._connected[worker_id].prefill
        assert link is not None
        return link

    def control(self, worker_id: str) -> "worker_pb2_grpc.WorkerServiceAsyncStub":
        """The stub of a worker as such. Raises UnknownWorkerError when it has left."""
        known = self._connected.get(worker_id)
        if known is None:
            raise UnknownWorkerError("the worker has left the fleet", field="worker_id", worker_id=worker_id)
        return worker_pb2_grpc.WorkerServiceStub(known.channel)

    def kvcache(self, node_id: str) -> "kvcache_pb2_grpc.KvCacheServiceAsyncStub | None":
        """The stub of a node's KV-cache service; None when the node has none."""
        return next((known.kvcache for known in self._caches() if known.member.node_id == node_id), None)

    def kvcache_address(self, node_id: str) -> str | None:
        """Where other nodes reach a node's KV-cache service, as it says itself; None when the node has none."""
        return next((known.member.address for known in self._caches() if known.member.node_id == node_id), None)

    async def close(self) -> None:
        """Ends all links."""
        connected, self._connected = list(self._connected.values()), {}
        for known in connected:
            if known.decode is not None:
                await known.decode.close()
            if known.prefill is not None:
                known.prefill.lose()
                known.prefill.close()
            await known.channel.close()
        await self.hints.close()
        await self.tokenizers.close()
        for task in tuple(self._closing):
            await end_task(task)

    def _connect(self, member: Member) -> _Connected:
        channel = open_channel(member.address)
        known = _Connected(member, channel)
        match member.role:
            case Role.DECODE:
                known.decode = DecodeLink(member.worker_id, channel, self._refresh)
                known.decode.open()
            case Role.PREFILL:
                known.prefill = PrefillLink(member.worker_id, channel, self._refresh)
                known.prefill.open()
            case _:
                known.kvcache = kvcache_pb2_grpc.KvCacheServiceStub(channel)
        return known

    async def _close_when_idle(self, known: _Connected) -> None:
        if known.decode is not None:
            known.decode.retire()
            await known.decode.wait_closed()
        if known.prefill is not None:
            await known.prefill.wait_idle()
            known.prefill.close()
        await known.channel.close()

    def _caches(self) -> Iterable[_Connected]:
        return (known for known in self._connected.values() if known.kvcache is not None)

    def _refresh(self) -> None:
        """Recomputes the snapshot, and says once of each worker why it is not used."""
        usable = [worker for known in self._connected.values() if known.is_usable and (worker := _worker(known.member))]
        open_roles = {one.role for one in usable if one.worker_id not in self._shut}
        workers = [one for one in usable if one.worker_id not in self._shut or one.role not in open_roles]
        caches = [
            NodeCache(known.member.node_id, known.member.model_digest, known.member.layout)
            for known in self._caches()
            if known.member.layout is not None
        ]
        before = {worker.worker_id for worker in _all(self.snapshot) if not worker.is_draining}
        self.snapshot, refusals = select(workers, caches)
        if before - {worker.worker_id for worker in _all(self.snapshot)}:
            self._lost_at_s = time.monotonic()
        for refusal in set(refusals) - self._refused:
            _log.warning("worker %s is not used: %s", refusal.worker_id, refusal.reason)
        self._refused = frozenset(refusals)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _all(snapshot: FleetSnapshot) -> tuple[Worker, ...]:
    return (*snapshot.prefill, *snapshot.decode)


def _worker(member: Member) -> Worker | None:
    if member.role not in _WORKER_ROLES or member.layout is None:
        return None
    return Worker(
        worker_id=member.worker_id,
        role=member.role,
        node_id=member.node_id,
        model_digest=member.model_digest,
        layout=member.layout,
        max_sequences=member.max_sequences,
        is_draining=member.is_draining,
        chip_class=member.chip_class,
        shares_cores=member.chip_class in BUILT_IN and BUILT_IN[member.chip_class].device == "cpu",
        model_size=member.model_size,
        rates=member.rates,
    )
