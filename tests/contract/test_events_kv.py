"""KV events from a publisher over a real nats-server to a follower whose dumps come from the node's own index."""

import asyncio
from collections.abc import Sequence

import pytest

from forebay.errors import NoWorkerError
from forebay.events.connection import connect
from forebay.events.kv_follower import IndexDump, KvFollower
from forebay.events.kv_publisher import KvEventPublisher
from forebay.kv.effect_log import EffectLog
from forebay.kv.tier import Tier
from forebay.testing.nats_server import NatsServer
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, events_pb2, kvcache_pb2
from forebay.wire.kv_index import event_to_proto


@pytest.fixture
def nats_server(tmp_path):  # type: ignore[no-untyped-def]
    server = NatsServer(tmp_path)
    yield server
    server.stop()


class Node:
    """A KV-cache service: an index, numbered changes, and dumps of it."""

    def __init__(self, node_id: str = "n1", incarnation: int = 1) -> None:
        self.node_id = node_id
        self.incarnation = incarnation
        self.hashes: set[bytes] = set()
        self.next_number = 1
        self.dump_count = 0
        self.is_up = True

    def change(self, publisher: KvEventPublisher, *, store: Sequence[bytes] = (), remove: Sequence[bytes] = ()) -> None:
        self.hashes |= set(store)
        self.hashes -= set(remove)
        events = []
        if store:
            events.append(
                events_pb2.KvEvent(stored=events_pb2.BlocksStored(tier=common_pb2.KV_TIER_DEVICE, block_hashes=store))
            )
        if remove:
            removed = events_pb2.BlocksRemoved(tier=common_pb2.KV_TIER_DEVICE, block_hashes=remove)
            events.append(events_pb2.KvEvent(removed=removed))
        publisher.publish(self.next_number, events)
        self.next_number += len(events)

    async def dump(self, node_id: str) -> IndexDump:
        assert node_id == self.node_id
        if not self.is_up:
            raise NoWorkerError("away")
        self.dump_count += 1
        entries = [kvcache_pb2.IndexEntry(block_hash=h, tier=common_pb2.KV_TIER_DEVICE) for h in self.hashes]
        return IndexDump(self.incarnation, self.next_number - 1, entries)


class Copy:
    """A reader's index."""

    def __init__(self) -> None:
        self.hashes: dict[str, set[bytes]] = {}

    def replace(self, node_id: str, entries: Sequence[kvcache_pb2.IndexEntry]) -> None:
        self.hashes[node_id] = {entry.block_hash for entry in entries}

    def apply(self, node_id: str, events: Sequence[events_pb2.KvEvent]) -> None:
        for event in events:
            self.hashes[node_id] |= set(event.stored.block_hashes)
            self.hashes[node_id] -= set(event.removed.block_hashes)

    def forget(self, node_id: str) -> None:
        self.hashes.pop(node_id, None)


async def test_a_late_reader_dumps_once_and_then_follows(nats_server) -> None:  # type: ignore[no-untyped-def]
    node, copy = Node(), Copy()
    sender, reader = await connect(nats_server.url, "sender"), await connect(nats_server.url, "reader")
    publisher = KvEventPublisher(sender, node.node_id, node.incarnation)
    publisher.start()
    node.change(publisher, store=[b"a", b"b"])
    follower = KvFollower(reader, node, copy)
    await follower.start()
    follower.add_node("n1")
    await reader.flush()
    await until(lambda: follower.is_following)
    dumps = node.dump_count
    for number in range(500):
        node.change(publisher, store=[b"%d" % number], remove=[b"%d" % (number // 2)])
    await until(lambda: copy.hashes.get("n1") == node.hashes)
    assert node.dump_count == dumps, "events alone were enough"
    follower.remove_node("n1")
    assert copy.hashes == {}
    for part in (publisher, follower, sender, reader):
        await part.close()


async def test_a_hundred_thousand_blocks_at_once_reach_a_reader(nats_server) -> None:  # type: ignore[no-untyped-def]
    """As when a large disk tier is found again, or flushed: more than one message of NATS may hold."""
    node, copy, log = Node(), Copy(), EffectLog()
    sender, reader = await connect(nats_server.url, "sender"), await connect(nats_server.url, "reader")
    publisher = KvEventPublisher(sender, node.node_id, node.incarnation)
    publisher.start()
    follower = KvFollower(reader, node, copy)
    await follower.start()
    follower.add_node("n1")
    await reader.flush()
    await until(lambda: follower.is_following)
    dumps = node.dump_count
    hashes = {number.to_bytes(16, "big") for number in range(100_000)}
    for block_hash in hashes:
        log.change(block_hash, None, Tier.DISK)
    node.next_number += len(log.events)
    publisher.publish(1, list(map(event_to_proto, log.events)))
    await until(lambda: copy.hashes.get("n1") == hashes)
    assert node.dump_count == dumps, "events alone were enough"
    for part in (publisher, follower, sender, reader):
        await part.close()


async def test_events_lost_in_an_outage_are_made_up_for(nats_server) -> None:  # type: ignore[no-untyped-def]
    node, copy = Node(), Copy()
    sender, reader = await connect(nats_server.url, "sender"), await connect(nats_server.url, "reader")
    publisher = KvEventPublisher(sender, node.node_id, node.incarnation)
    publisher.start()
    follower = KvFollower(reader, node, copy)
    await follower.start()
    follower.add_node("n1")
    await until(lambda: follower.is_following)
    nats_server.stop()
    await until(lambda: not sender.is_connected and not reader.is_connected)
    node.change(publisher, store=[b"during the outage"])
    await until(lambda: not publisher._waiting)  # sent into the void
    nats_server.start()
    await until(lambda: sender.is_connected and reader.is_connected)
    await until(lambda: copy.hashes["n1"] == node.hashes)
    node.change(publisher, store=[b"after"], remove=[b"during the outage"])
    await until(lambda: copy.hashes["n1"] == node.hashes == {b"after"})
    for part in (publisher, follower, sender, reader):
        await part.close()


async def test_a_heartbeat_alone_shows_a_gap(nats_server) -> None:  # type: ignore[no-untyped-def]
    node, copy = Node(), Copy()
    connection = await connect(nats_server.url, "both")
    follower = KvFollower(connection, node, copy)
    await follower.start()
    follower.add_node("n1")
    await until(lambda: follower.is_following)
    publisher = KvEventPublisher(connection, node.node_id, node.incarnation)
    node.change(publisher, store=[b"x"])
    publisher._waiting.clear()  # lost before it was sent
    publisher.start()
    await until(lambda: copy.hashes["n1"] == {b"x"})
    for part in (publisher, follower, connection):
        await part.close()


async def test_a_restarted_node_and_one_that_does_not_answer(nats_server, caplog) -> None:  # type: ignore[no-untyped-def]
    node, copy = Node(), Copy()
    connection = await connect(nats_server.url, "both")
    follower = KvFollower(connection, node, copy)
    await follower.start()
    follower.add_node("n1")
    await until(lambda: follower.is_following)
    node.is_up, node.incarnation, node.hashes, node.next_number = False, 2, set(), 1
    publisher = KvEventPublisher(connection, "n1", 2)
    publisher.start()
    node.change(publisher, store=[b"new"])
    await until(lambda: any("no index dump" in record.getMessage() for record in caplog.records))
    assert not follower.is_following
    node.is_up = True
    await until(lambda: copy.hashes["n1"] == {b"new"})
    assert follower.is_following
    for part in (publisher, follower, connection):
        await part.close()


async def test_a_publisher_never_blocks_and_its_buffer_is_bounded() -> None:
    class Away:
        """A connection whose server does not answer."""

        async def publish(self, subject: str, payload: bytes) -> bool:
            await asyncio.Event().wait()
            return False

    publisher = KvEventPublisher(Away(), "n1", 1)  # type: ignore[arg-type]
    publisher.start()
    event = events_pb2.KvEvent(stored=events_pb2.BlocksStored(tier=common_pb2.KV_TIER_DEVICE, block_hashes=[b"h"]))
    for number in range(40_000):
        publisher.publish(number + 1, [event])
    assert len(publisher._waiting) == 16_384
    assert publisher._waiting[-1][0] == 40_000
    assert publisher._task is not None
    publisher._task.cancel()
