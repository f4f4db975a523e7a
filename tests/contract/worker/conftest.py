"""A real KV-cache service, in this process, over shared memory of its own."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any

import pytest

from forebay.kv.layout import KvLayout
from forebay.kv.ledger import BlockLedger, LedgerSettings, LedgerStats
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore
from forebay.kvcache.arena import Arena
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.mover import BlockMover
from forebay.kvcache.node import KvNode
from forebay.kvcache.process_watch import ProcessWatch
from forebay.kvcache.servicer import KvCacheServicer, NodeIdentity
from forebay.kvcache.transfer.bringer import Bringer, Home
from forebay.kvcache.transfer.grpc_transport import GrpcBlockTransport
from forebay.kvcache.transfer.node_sealed_blocks import NodeSealedBlocks
from forebay.kvcache.transfer.peer_channels import PeerChannels
from forebay.kvcache.transfer.puller import BlockPuller
from forebay.kvcache.transfer.source import SERVICE, BlockSource, add_block_source
from forebay.rpc.server import Server
from forebay.testing.fake_engine import LAYOUT
from forebay.testing.kv_worker import ARITHMETIC
from forebay.testing.plain_node import NobodyFollows
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc


class GatedServicer(KvCacheServicer):
    """The real servicer, whose answers a test may hold back: after the deed, as a slow network would."""

    def __init__(self, node: KvNode, identity: NodeIdentity, bringer: Bringer) -> None:
        super().__init__(node, identity, bringer)
        self.acquire_gate, self.seal_gate, self.renew_gate = asyncio.Event(), asyncio.Event(), asyncio.Event()
        for gate in (self.acquire_gate, self.seal_gate, self.renew_gate):
            gate.set()
        self.heartbeats: list[kvcache_pb2.RenewLeaseRequest] = []
        self.acquires: list[kvcache_pb2.AcquireBlocksRequest] = []

    async def AcquireBlocks(
        self, request: kvcache_pb2.AcquireBlocksRequest, context: Any
    ) -> kvcache_pb2.AcquireBlocksResponse:
        self.acquires.append(request)
        response = await super().AcquireBlocks(request, context)
        await self.acquire_gate.wait()
        return response

    async def SealBlocks(self, request: kvcache_pb2.SealBlocksRequest, context: Any) -> kvcache_pb2.SealBlocksResponse:
        response = await super().SealBlocks(request, context)
        await self.seal_gate.wait()
        return response

    async def RenewLease(self, request: kvcache_pb2.RenewLeaseRequest, context: Any) -> kvcache_pb2.RenewLeaseResponse:
        response = await super().RenewLease(request, context)
        self.heartbeats.append(request)
        await self.renew_gate.wait()
        return response


@dataclass(slots=True)
class RunningKvCache:
    """The service, and what a test may do to it."""

    address: str
    node_id: str
    node: KvNode
    server: Server
    servicer: GatedServicer

    def stats(self) -> LedgerStats:
        """Counts now."""
        return self.node.stats()

    def bury(self, attachment_id: int) -> None:
        """From now on the process of this attachment counts as gone."""
        self.node._ledger.detach(attachment_id, time.monotonic(), process_is_gone=True)

    def is_all_released(self) -> bool:
        """Whether no sequence holds anything."""
        return self.stats().sequences == 0 and self.stats().tiers[0].leased == 0


@asynccontextmanager
async def _start(
    *,
    blocks: int = 64,
    host_blocks: int = 0,
    lease_s: float = 60.0,
    listen: str = "127.0.0.1:0",
    layout: KvLayout = LAYOUT,
    model_digest: str = "fake-digest",
    arithmetic: str = ARITHMETIC,
    tenant_blocks: int | None = None,
) -> AsyncIterator[RunningKvCache]:
    node_id = f"test-{secrets.token_hex(4)}"
    stride_bytes = -(-layout.block_bytes // 64) * 64
    with (
        closing(Arena(node_id, Tier.DEVICE, stride_bytes * blocks, layout.block_bytes)) as arena,
        closing(Arena(node_id, Tier.HOST, stride_bytes * max(1, host_blocks), layout.block_bytes)) as host,
    ):
        first_number = time.time_ns() // 1000
        store = TieredStore(StoreSettings(blocks, host_blocks))
        ledger = BlockLedger(store, LedgerSettings(lease_s, 0.5, first_number, tenant_block_count=tenant_blocks))
        mover = BlockMover({Tier.DEVICE: arena, Tier.HOST: host}, layout.block_bytes)
        carrier = Carrier(mover, {})
        node = KvNode(ledger, store, carrier, NobodyFollows(), time.monotonic, ProcessWatch().is_alive)
        identity = NodeIdentity(node_id, first_number, model_digest, layout, arithmetic, lease_s, (arena.segment,))
        server = Server(listen)
        channels = PeerChannels()
        puller = BlockPuller((GrpcBlockTransport(channels),), time.monotonic)
        home = Home(node_id, model_digest, layout)
        servicer = GatedServicer(node, identity, Bringer(home, node, carrier, puller, time.monotonic))
        server.add(kvcache_pb2_grpc.add_KvCacheServiceServicer_to_server, servicer, SERVICE)
        server.add(add_block_source, BlockSource(NodeSealedBlocks(node, carrier, layout, 0.5), None), SERVICE)
        address = await server.start()
        ticker = asyncio.create_task(_tick(node))
        try:
            yield RunningKvCache(address, node_id, node, server, servicer)
        finally:
            ticker.cancel()
            node.end_attachments()
            await server.stop(0.2)
            await channels.close()


async def _tick(node: KvNode) -> None:
    while True:
        node.tick()
        await asyncio.sleep(0.05)


@pytest.fixture
def start_kvcache() -> Callable[..., AbstractAsyncContextManager[RunningKvCache]]:
    """Starts a KV-cache service: `async with start_kvcache(blocks=…) as kvcache`."""
    return _start
