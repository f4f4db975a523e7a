"""`python -m forebay.kvcache`: builds the node's KV-cache service and serves until told to stop."""

import asyncio
import time
from contextlib import AsyncExitStack, closing
from importlib.metadata import version
from typing import Final

from forebay.chips import chip_class_named
from forebay.chips.kv_layout import layout_for
from forebay.events.connection import connect
from forebay.events.kv_publisher import KvEventPublisher
from forebay.fleet.drain import drain
from forebay.fleet.member import Member
from forebay.fleet.registrar import Registrar
from forebay.host.heap import keep_freed_memory
from forebay.kv.layout import KvLayout
from forebay.kv.ledger import BlockLedger, LedgerSettings
from forebay.kv.tier import Tier
from forebay.kvcache.announcer import Announcer
from forebay.kvcache.arena import Arena
from forebay.kvcache.config import KvCacheSettings
from forebay.kvcache.mover import BlockMover
from forebay.kvcache.node import KvEventSink, KvNode
from forebay.kvcache.process_watch import ProcessWatch
from forebay.kvcache.servicer import KvCacheServicer, NodeIdentity
from forebay.models.model_file import ModelFile, open_model
from forebay.role import Role
from forebay.rpc.server import Server
from forebay.rpc.service import run
from forebay.telemetry import spans
from forebay.v1 import kvcache_pb2_grpc

SERVICE: Final = "forebay.v1.KvCacheService"
SPAN_NAMES: Final = {
    f"/{SERVICE}/AttachWorker": None,  # lives as long as the worker; the servicer makes one for its beginning
    f"/{SERVICE}/AcquireBlocks": spans.KV_ACQUIRE,
    f"/{SERVICE}/SealBlocks": spans.KV_SEAL,
    f"/{SERVICE}/ReleaseSequence": None,  # sent in batches after the requests, of which none waits for it
    f"/{SERVICE}/RenewLease": None,  # belongs to no request
    f"/{SERVICE}/GetStats": None,
    f"/{SERVICE}/DumpIndex": None,
}
TICK_S: Final = 0.2
STOP_GRACE_S: Final = 1.0


async def serve(settings: KvCacheSettings, stop: asyncio.Event) -> None:
    """Serves from ready to drained."""
    model = open_model(settings.model)
    layout = layout_for(model.config, chip_class_named(settings.chip_class))
    # Also the first epoch and attachment id, so that no later run uses one of them again.
    incarnation = time.time_ns() // 1000
    async with AsyncExitStack() as stack:
        sizes_bytes = {Tier.DEVICE: settings.device_bytes, Tier.HOST: settings.host_bytes}
        arenas = [
            stack.enter_context(closing(Arena(settings.node_id, tier, size_bytes, layout.block_bytes)))
            for tier, size_bytes in sizes_bytes.items()
            if size_bytes > 0
        ]
        connection = await connect(settings.nats_url, f"kvcache-{settings.node_id}")
        stack.push_async_callback(connection.close)
        publisher = KvEventPublisher(connection, settings.node_id, incarnation)
        stack.push_async_callback(publisher.close)
        publisher.start()
        watch = stack.enter_context(closing(ProcessWatch()))
        node = build_node(settings, arenas, layout, Announcer(publisher), watch, incarnation)
        identity = NodeIdentity(
            node_id=settings.node_id,
            incarnation=incarnation,
            model_digest=model.digest,
            layout=layout,
            lease_s=settings.lease_s,
            segments=tuple(arena.segment for arena in arenas),
        )
        server = Server(settings.listen, SPAN_NAMES)
        server.add(kvcache_pb2_grpc.add_KvCacheServiceServicer_to_server, KvCacheServicer(node, identity), SERVICE)
        address = await server.start()
        stack.push_async_callback(server.stop, STOP_GRACE_S)
        registrar = Registrar(connection, member_of(settings, identity, model, settings.advertise or address))
        stack.push_async_callback(registrar.close)
        await registrar.start()
        await server.set_serving(True)
        async with asyncio.TaskGroup() as group:
            ticker = group.create_task(tick(node), name="kv-tick")
            await stop.wait()
            node.drain()
            await drain(server, registrar, idle(node), settings.drain_s)
            node.end_attachments()
            ticker.cancel()


def build_node(
    settings: KvCacheSettings,
    arenas: list[Arena],
    layout: KvLayout,
    events: KvEventSink,
    watch: ProcessWatch,
    first_number: int,
) -> KvNode:
    """The node over its memory."""
    block_counts = {arena.tier: arena.block_count for arena in arenas}
    ledger = BlockLedger(
        LedgerSettings(
            device_block_count=block_counts[Tier.DEVICE],
            host_block_count=block_counts.get(Tier.HOST, 0),
            lease_s=settings.lease_s,
            grace_s=settings.grace_s,
            offer_s=settings.offer_s,
            first_number=first_number,
        )
    )
    stride_bytes = arenas[0].block_stride_bytes
    mover = BlockMover({arena.tier: arena.view for arena in arenas}, stride_bytes, layout.block_bytes)
    return KvNode(ledger, mover, events, time.monotonic, watch.is_alive)


def member_of(settings: KvCacheSettings, identity: NodeIdentity, model: ModelFile, address: str) -> Member:
    """This service's record in the fleet."""
    return Member(
        worker_id=f"kvcache-{settings.node_id}-{identity.incarnation:x}",
        role=Role.KVCACHE,
        address=address,
        node_id=settings.node_id,
        model=model.name,
        model_digest=identity.model_digest,
        layout=identity.layout,
        version=version("forebay"),
        incarnation=identity.incarnation,
    )


async def tick(node: KvNode) -> None:
    """Looks after leases and processes for ever."""
    while True:
        node.tick()
        await asyncio.sleep(TICK_S)


async def idle(node: KvNode) -> None:
    """Returns when no sequence is left."""
    while node.stats().sequences:  # noqa: ASYNC110  # leases end by time too, which tells nobody
        await asyncio.sleep(TICK_S)


if __name__ == "__main__":
    keep_freed_memory()
    run("kvcache", KvCacheSettings, serve, lambda settings: {spans.CHIP_CLASS: settings.chip_class})
