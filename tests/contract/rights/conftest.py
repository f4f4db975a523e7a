"""A KV-cache service on a real server on loopback, with its memory, its clock and a client."""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from forebay.kv.effects import IndexEvent, Moved, Removed
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kv.ledger import BlockLedger, LedgerSettings
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore
from forebay.kvcache.arena import Arena
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.mover import BlockMover
from forebay.kvcache.node import KvNode
from forebay.kvcache.process_watch import ProcessWatch
from forebay.kvcache.servicer import KvCacheServicer, NodeIdentity
from forebay.kvcache.transfer.bringer import Bringer, Home
from forebay.kvcache.transfer.puller import BlockPuller
from forebay.rpc.channel import open_channel
from forebay.rpc.server import Server
from forebay.testing.kv_worker import ARITHMETIC, KvWorker, attach
from forebay.testing.kv_worker import seal_entry as entry
from forebay.v1 import kvcache_pb2_grpc
from forebay.wire.layout import layout_to_proto

LAYOUT = KvLayout(KvDtype.FLOAT32, layers=1, kv_heads=1, head_dim=2, block_tokens=3)  # 48 bytes a block
LEASE_S, GRACE_S = 10.0, 2.0
NODE_NUMBERS = itertools.count()


class Follower:
    """A reader of the index events."""

    def __init__(self) -> None:
        self.index: dict[bytes, Tier] = {}
        self.last_number = 0

    def publish(self, first_event_number: int, events: tuple[IndexEvent, ...]) -> None:
        assert first_event_number == self.last_number + 1
        self.last_number += len(events)
        for event in events:
            for block_hash in event.hashes:
                if isinstance(event, Removed):
                    del self.index[block_hash]
                else:
                    self.index[block_hash] = event.to_tier if isinstance(event, Moved) else event.tier


class Service:
    """A service with its memory, its clock and a client."""

    def __init__(self, arenas: list[Arena]) -> None:
        self.arenas = {arena.tier: arena for arena in arenas}
        self.follower = Follower()
        self.now_s = 0.0
        store = TieredStore(StoreSettings(*(arena.block_count for arena in arenas), kept_after_uses=1))
        carrier = Carrier(BlockMover(self.arenas, LAYOUT.block_bytes), {})
        self.node = KvNode(
            BlockLedger(store, LedgerSettings(LEASE_S, GRACE_S)),
            store,
            carrier,
            self.follower,
            lambda: self.now_s,
            ProcessWatch().is_alive,
        )
        segments = tuple(arena.segment for arena in arenas)
        identity = NodeIdentity("node", 7, "digest", LAYOUT, ARITHMETIC, LEASE_S, segments)
        nowhere = BlockPuller((), lambda: self.now_s)
        bringer = Bringer(Home("node", "digest", LAYOUT), self.node, carrier, nowhere, lambda: self.now_s)
        self.servicer = KvCacheServicer(self.node, identity, bringer)

    async def start(self) -> None:
        self.server = Server("127.0.0.1:0")
        register = kvcache_pb2_grpc.add_KvCacheServiceServicer_to_server
        self.server.add(register, self.servicer, "forebay.v1.KvCacheService")
        self.channel = open_channel(await self.server.start())
        self.stub = kvcache_pb2_grpc.KvCacheServiceStub(self.channel)

    async def stop(self) -> None:
        self.node.end_attachments()
        await self.channel.close()
        await self.server.stop(0)

    async def attach(self, worker_id: str = "w", **fields: object) -> KvWorker:
        return await attach(self.stub, "digest", layout_to_proto(LAYOUT), worker_id=worker_id, **fields)

    async def cache(self, worker: KvWorker, sequence_id: str, block_hashes: tuple[bytes, ...]) -> None:
        """Computes blocks whose bytes tell their hash, and leaves them as cache."""
        grant = await worker.begin(sequence_id, len(block_hashes))
        for block_id, block_hash in zip(grant.block_ids, block_hashes, strict=True):
            self.block(block_id)[:16] = block_hash
        await worker.seal(entry(grant.epoch, block_hashes, sequence_id=sequence_id))
        await worker.release((sequence_id, grant.epoch))

    def block(self, index: int, tier: Tier = Tier.DEVICE) -> memoryview:
        arena = self.arenas[tier]
        start = index * arena.block_stride_bytes
        return arena.view[start : start + LAYOUT.block_bytes]


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    node_id = f"test-{os.getpid()}-{next(NODE_NUMBERS)}"
    with (
        closing(Arena(node_id, Tier.DEVICE, 8 * 64, LAYOUT.block_bytes)) as device,
        closing(Arena(node_id, Tier.HOST, 4 * 64, LAYOUT.block_bytes)) as host,
    ):
        running = Service([device, host])
        await running.start()
        yield running
        await running.stop()


@pytest.fixture
def service_over() -> type[Service]:
    """Makes a service over arenas of one's own."""
    return Service
