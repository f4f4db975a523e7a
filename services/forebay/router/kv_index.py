"""Feeds the prefix index from the nodes' KV events and dumps: protobuf on one side, `forebay.routing` on the other."""

from collections.abc import Callable, Mapping, Sequence

from forebay.errors import NoWorkerError
from forebay.events.kv_follower import IndexDump, KvFollower
from forebay.fleet.member import Member
from forebay.kv.effects import Moved, Removed, Stored
from forebay.role import Role
from forebay.routing.prefix_index import PrefixIndex
from forebay.rpc.status import translated
from forebay.v1 import events_pb2, kvcache_pb2, kvcache_pb2_grpc
from forebay.wire.kv_index import entry_from_proto, event_from_proto

DUMP_TIMEOUT_S = 10.0


class IndexFeed:
    """The follower's `KvIndex`."""

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index

    def replace(self, node_id: str, entries: Sequence[kvcache_pb2.IndexEntry]) -> None:
        """The node holds exactly these."""
        self._index.replace(node_id, map(entry_from_proto, entries))

    def apply(self, node_id: str, events: Sequence[events_pb2.KvEvent]) -> None:
        """The node's index changed."""
        for message in events:
            match event_from_proto(message):
                case Stored(tier, hashes):
                    self._index.store(node_id, tier, hashes)
                case Removed(tier, hashes):
                    self._index.remove(node_id, tier, hashes)
                case Moved(from_tier, to_tier, hashes):
                    self._index.move(node_id, from_tier, to_tier, hashes)
                case None:
                    pass  # an event of a later version

    def forget(self, node_id: str) -> None:
        """The node is gone."""
        self._index.forget(node_id)


class KvCacheDumps:
    """The follower's `DumpPort`; `stub_of` finds the KV-cache service of a node."""

    def __init__(self, stub_of: "Callable[[str], kvcache_pb2_grpc.KvCacheServiceAsyncStub | None]") -> None:
        self._stub_of = stub_of

    async def dump(self, node_id: str) -> IndexDump:
        """Raises ForebayError when the node cannot be reached."""
        stub = self._stub_of(node_id)
        if stub is None:
            raise NoWorkerError("the node's KV-cache service is gone")
        incarnation, last_event_number = 0, 0
        entries: list[kvcache_pb2.IndexEntry] = []
        with translated():
            async for page in stub.DumpIndex(kvcache_pb2.DumpIndexRequest(), timeout=DUMP_TIMEOUT_S):
                incarnation, last_event_number = page.incarnation, page.last_event_number
                entries += page.entries
        return IndexDump(incarnation, last_event_number, entries)


class FollowedNodes:
    """Keeps the followed nodes equal to the fleet's. A restarted KV-cache service is a new member: dumped anew."""

    def __init__(self, follower: KvFollower) -> None:
        self._follower = follower
        self._service_of: dict[str, str] = {}  # node → worker id of its KV-cache service

    def update(self, members: Mapping[str, Member]) -> None:
        """The fleet is this now."""
        service_of = {member.node_id: member.worker_id for member in members.values() if member.role is Role.KVCACHE}
        for node_id in self._service_of.keys() - service_of.keys():
            self._follower.remove_node(node_id)
        for node_id, worker_id in service_of.items():
            if self._service_of.get(node_id) != worker_id:
                self._follower.add_node(node_id)
        self._service_of = service_of
