"""Keeps a reader's copy of every node's KV index up to date over NATS, with dumps over gRPC where events were missed.

Knows how events and dumps arrive; `KvCursor` decides what to do, the `KvIndex` holds the copy.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from forebay.errors import ForebayError
from forebay.events.connection import Connection
from forebay.events.kv_cursor import Apply, Batch, KvCursor, RequestDump
from forebay.tasks import end_task
from forebay.v1 import events_pb2, kvcache_pb2

_log = logging.getLogger(__name__)

DUMP_RETRY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class IndexDump:
    """A node's whole index, with the events up to `last_event_number` contained."""

    incarnation: int
    last_event_number: int
    entries: Sequence[kvcache_pb2.IndexEntry]


class DumpPort(Protocol):
    """Gets a node's index from its KV-cache service."""

    async def dump(self, node_id: str) -> IndexDump:
        """Raises ForebayError when the node cannot be reached."""
        ...


class KvIndex(Protocol):
    """The copy that is kept."""

    def replace(self, node_id: str, entries: Sequence[kvcache_pb2.IndexEntry]) -> None:
        """The node holds exactly these."""
        ...

    def apply(self, node_id: str, events: Sequence[events_pb2.KvEvent]) -> None:
        """The node's index changed, in this order."""
        ...

    def forget(self, node_id: str) -> None:
        """The node is gone."""
        ...


@dataclass(slots=True)
class _Node:
    cursor: KvCursor[events_pb2.KvEvent] = field(default_factory=KvCursor)
    dumping: asyncio.Task[None] | None = None


class KvFollower:
    """Follows the nodes it was told of by `add_node`; events of others are ignored."""

    def __init__(self, connection: Connection, dumps: DumpPort, index: KvIndex) -> None:
        self._connection = connection
        self._dumps = dumps
        self._index = index
        self._nodes: dict[str, _Node] = {}
        self._subscription: Subscription | None = None
        self._remove_listener = connection.on_reconnected(self._suspect_all)

    async def start(self) -> None:
        """Subscribes."""
        self._subscription = await self._connection.subscribe("forebay.kv.*", self._on_message, self._suspect_all)

    def add_node(self, node_id: str) -> None:
        """Begins with a dump of this node. A node already followed is suspected of a restart: dumped again."""
        node = self._nodes.setdefault(node_id, _Node())
        self._act(node_id, node, node.cursor.on_suspicion())

    def remove_node(self, node_id: str) -> None:
        """Forgets a node and what it held. Unknown nodes are ignored."""
        node = self._nodes.pop(node_id, None)
        if node is None:
            return
        if node.dumping is not None:
            node.dumping.cancel()
        self._index.forget(node_id)

    @property
    def is_following(self) -> bool:
        """Whether the copy of every node is complete up to the last event heard of."""
        return all(node.cursor.is_following for node in self._nodes.values())

    async def close(self) -> None:
        """Unsubscribes and ends dumps under way."""
        self._remove_listener()
        tasks = [node.dumping for node in self._nodes.values() if node.dumping is not None]
        self._nodes.clear()
        for task in tasks:
            await end_task(task)
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)

    async def _on_message(self, message: Msg) -> None:
        batch = events_pb2.KvEventBatch.FromString(message.data)
        node = self._nodes.get(batch.node_id)
        if node is not None:
            effect = node.cursor.on_batch(Batch(batch.incarnation, batch.first_event_number, batch.events))
            self._act(batch.node_id, node, effect)

    def _suspect_all(self) -> None:
        for node_id, node in self._nodes.items():
            self._act(node_id, node, node.cursor.on_suspicion())

    def _act(self, node_id: str, node: _Node, effect: Apply[events_pb2.KvEvent] | RequestDump | None) -> None:
        match effect:
            case Apply(events):
                self._index.apply(node_id, events)
            case RequestDump():
                loop = asyncio.get_running_loop()
                node.dumping = loop.create_task(self._dump(node_id, node), name=f"kv-dump-{node_id}")
            case None:
                pass

    async def _dump(self, node_id: str, node: _Node) -> None:
        is_failure_logged = False
        while True:
            try:
                dump = await self._dumps.dump(node_id)
                break
            except ForebayError as error:
                if not is_failure_logged:
                    _log.warning("no index dump from node %s: %s; trying again", node_id, error.message)
                is_failure_logged = True
            await asyncio.sleep(DUMP_RETRY_S)
        node.dumping = None
        self._index.replace(node_id, dump.entries)
        for effect in node.cursor.on_dump(dump.incarnation, dump.last_event_number):
            self._act(node_id, node, effect)
