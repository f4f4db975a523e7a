"""`python -m forebay.kvcache`: builds the node's KV-cache service and serves until told to stop."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, closing
from importlib.metadata import version
from typing import Final

import grpc
from xxhash import xxh3_128_digest

from forebay.chips import chip_class_named
from forebay.chips.kv_layout import layout_for
from forebay.errors import DiskFailedError, StartError
from forebay.events.connection import connect
from forebay.events.kv_publisher import KvEventPublisher
from forebay.fleet.drain import drain
from forebay.fleet.member import Member, incarnation_now
from forebay.fleet.registrar import Registrar
from forebay.host.heap import keep_freed_memory
from forebay.kv.block_transport import SealedBlocks
from forebay.kv.eviction.policies import POLICIES
from forebay.kv.layout import KvLayout
from forebay.kv.ledger import BlockLedger, LedgerSettings
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore
from forebay.kvcache.announcer import Announcer
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.config import KvCacheSettings
from forebay.kvcache.disk.folder import open_folder
from forebay.kvcache.disk.queue import DiskQueue
from forebay.kvcache.disk.store import DiskStore
from forebay.kvcache.disk_traffic import DiskTraffic
from forebay.kvcache.gpu_arena import PinnedArena
from forebay.kvcache.memory_tier import GpuTier, MemoryTier, runtime_of
from forebay.kvcache.mover import BlockMover
from forebay.kvcache.node import KvNode
from forebay.kvcache.process_watch import ProcessWatch
from forebay.kvcache.servicer import KvCacheServicer, NodeIdentity
from forebay.kvcache.transfer.bringer import Bringer, Home
from forebay.kvcache.transfer.data_listener import DataListener
from forebay.kvcache.transfer.grpc_transport import GrpcBlockTransport
from forebay.kvcache.transfer.node_sealed_blocks import NodeSealedBlocks
from forebay.kvcache.transfer.peer_channels import PeerChannels
from forebay.kvcache.transfer.puller import BlockPuller
from forebay.kvcache.transfer.source import BlockSource, add_block_source
from forebay.kvcache.transfer.tcp_transport import TcpBlockTransport
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
    f"/{SERVICE}/PrefetchBlocks": None,
    f"/{SERVICE}/PinBlocks": None,
    f"/{SERVICE}/UnpinBlocks": None,
    f"/{SERVICE}/FlushBlocks": None,
    f"/{SERVICE}/VerifyBlocks": None,
    f"/{SERVICE}/PullBlocks": None,  # the node that pulls has a span for it
    f"/{SERVICE}/BringBlocks": None,  # lasts until its blocks are used; the transfer alone has a span
}
TICK_S: Final = 0.2
STOP_GRACE_S: Final = 1.0


async def serve(settings: KvCacheSettings, stop: asyncio.Event) -> None:
    """Serves from ready to drained."""
    model = open_model(settings.model)
    chip_class = chip_class_named(settings.chip_class)
    layout = layout_for(model.config, chip_class)
    # Also the first epoch and attachment id, so that no later run uses one of them again.
    incarnation = incarnation_now()
    async with AsyncExitStack() as stack:
        key = content_key(model.digest, chip_class.arithmetic, layout)
        memory = open_memory(settings, stack, layout.block_bytes, key)
        disk = open_disk(settings, key.hex(), layout)
        if disk is not None:
            stack.callback(disk.close)
        connection = await connect(settings.nats_url, f"kvcache-{settings.node_id}")
        stack.push_async_callback(connection.close)
        publisher = KvEventPublisher(connection, settings.node_id, incarnation)
        stack.push_async_callback(publisher.close)
        publisher.start()
        watch = stack.enter_context(closing(ProcessWatch()))
        store, carrier = build_store(settings, memory, disk), build_carrier(memory, layout.block_bytes)
        ledger = build_ledger(settings, store, incarnation)
        node = KvNode(ledger, store, carrier, Announcer(publisher), time.monotonic, watch.is_alive)
        for tier, one in memory.items():
            node.restore(tier, one.recovered)
        if disk is not None:
            carrier.disk = traffic_of(disk, carrier, node)
            stack.push_async_callback(carrier.disk.close)
            restore_disk(node, disk)
        identity = NodeIdentity(
            node_id=settings.node_id,
            incarnation=incarnation,
            model_digest=model.digest,
            layout=layout,
            arithmetic=chip_class.arithmetic,
            lease_s=settings.lease_s,
            segments=(memory[Tier.DEVICE].arena.segment,),
            disk_wait_s=settings.disk_wait_s,
            eviction_policy=settings.eviction_policy,
        )
        source = start_source(settings, stack, NodeSealedBlocks(node, carrier, layout, settings.disk_wait_s))
        bringer = build_bringer(stack, identity, node, carrier)
        servicer = KvCacheServicer(node, identity, bringer, None if disk is None else lambda: disk.stats)
        server = Server(settings.listen, SPAN_NAMES)
        server.add(add_kvcache_service, (source, servicer), SERVICE)
        address = await server.start()
        stack.push_async_callback(server.stop, STOP_GRACE_S)
        registrar = Registrar(connection, member_of(settings, identity, model, settings.advertise or address))
        stack.push_async_callback(registrar.close)
        await registrar.start()
        await server.set_serving(True)
        async with asyncio.TaskGroup() as group:
            ticker = group.create_task(tick(node), name="kv-tick")
            notes = group.create_task(carrier.notes.run(), name="kv-notes")
            await stop.wait()
            node.drain()
            await drain(server, registrar, idle(node), settings.drain_s)
            node.end_attachments()
            ticker.cancel()
            notes.cancel()


def content_key(model_digest: str, arithmetic: str, layout: KvLayout) -> bytes:
    """Names what the bytes of a node's blocks mean: what was kept under another key is of no use."""
    return xxh3_128_digest(repr((model_digest, arithmetic, layout)).encode())


def open_memory(
    settings: KvCacheSettings, stack: AsyncExitStack, block_bytes: int, key: bytes
) -> dict[Tier, MemoryTier | GpuTier]:
    """The tiers of memory. Errors: StartError."""
    runtime = runtime_of(settings.device)
    memory: dict[Tier, MemoryTier | GpuTier] = {}
    if settings.host_bytes > 0:
        host = MemoryTier(settings.node_id, Tier.HOST, settings.host_bytes, block_bytes, key)
        memory[Tier.HOST] = stack.enter_context(closing(host))
        if runtime is not None:
            stack.enter_context(closing(PinnedArena(runtime, host.arena)))
    if runtime is None:
        device: MemoryTier | GpuTier = MemoryTier(
            settings.node_id, Tier.DEVICE, settings.device_bytes, block_bytes, key
        )
    else:
        device = GpuTier(runtime, Tier.DEVICE, settings.device_bytes, block_bytes)
    memory[Tier.DEVICE] = stack.enter_context(closing(device))
    return memory


def open_disk(settings: KvCacheSettings, key: str, layout: KvLayout) -> DiskStore | None:
    """The DISK tier, if there is to be one. Errors: StartError."""
    if settings.disk_dir is None and settings.disk_bytes == 0:
        return None
    if settings.disk_dir is None or settings.disk_bytes == 0:
        raise StartError("a disk tier needs both --disk-dir and --disk-bytes")
    if settings.host_bytes == 0:
        raise StartError(
            "a disk tier needs a host tier, from which it is written and into which it is read: --host-bytes"
        )
    return open_folder(settings.disk_dir, settings.disk_bytes, key, layout)


def restore_disk(node: KvNode, disk: DiskStore) -> None:
    """What is left on disk is found from now on; where it cannot be read the tier is off, and serving goes on."""
    try:
        # Oldest write first, which is to go first; of a block that is there twice, the later.
        slots = {block_hash: slot for slot, block_hash in disk.recover()}
        node.restore(Tier.DISK, [(slot, block_hash) for block_hash, slot in slots.items()])
    except DiskFailedError:  # the store has said why
        node.blocks.on_disk_failed()


def traffic_of(disk: DiskStore, carrier: Carrier, node: KvNode) -> DiskTraffic:
    """Reads and writes of the DISK tier, from and into HOST blocks."""
    return DiskTraffic(DiskQueue(disk), lambda index: carrier.memory_of(Tier.HOST, index), node.blocks)


def build_store(
    settings: KvCacheSettings, memory: Mapping[Tier, MemoryTier | GpuTier], disk: DiskStore | None
) -> TieredStore:
    """What the tiers hold: nothing yet. Errors: StartError."""
    block_counts = {tier: one.arena.block_count for tier, one in memory.items()}
    device_block_count = block_counts[Tier.DEVICE]
    if settings.free_blocks >= device_block_count:
        raise StartError(
            f"--free-blocks {settings.free_blocks} leaves no room for cache in the {device_block_count} blocks of the"
            " device tier; lower it, or raise --device-bytes"
        )
    return TieredStore(
        StoreSettings(
            device_block_count=device_block_count,
            host_block_count=block_counts.get(Tier.HOST, 0),
            disk_block_count=0 if disk is None else disk.shape.block_count,
            kept_after_uses=settings.kept_after_uses,
            free_block_count=settings.free_blocks,
            new_policy=POLICIES[settings.eviction_policy],
        )
    )


def build_ledger(settings: KvCacheSettings, store: TieredStore, first_number: int) -> BlockLedger:
    """Rights to the blocks: nobody's yet."""
    return BlockLedger(
        store,
        LedgerSettings(
            lease_s=settings.lease_s,
            grace_s=settings.grace_s,
            offer_s=settings.offer_s,
            first_number=first_number,
            tenant_block_count=settings.tenant_blocks,
        ),
    )


def build_carrier(memory: Mapping[Tier, MemoryTier | GpuTier], block_bytes: int) -> Carrier:
    """Copies between the tiers of memory, each with its checkpoint if it has one."""
    mover = BlockMover({tier: one.arena for tier, one in memory.items()}, block_bytes)
    return Carrier(mover, {tier: one.checkpoint for tier, one in memory.items() if one.checkpoint is not None})


def start_source(settings: KvCacheSettings, stack: AsyncExitStack, blocks: SealedBlocks) -> BlockSource:
    """Transfers out of this node; bytes go over a port of its own of the host served on."""
    listener = DataListener(settings.listen.rpartition(":")[0].strip("[]"))
    listener.start()
    stack.push_async_callback(listener.close)
    return BlockSource(blocks, listener)


def build_bringer(stack: AsyncExitStack, identity: NodeIdentity, node: KvNode, carrier: Carrier) -> Bringer:
    """Transfers into this node, by the best way there is."""
    channels = PeerChannels()
    stack.push_async_callback(channels.close)
    puller = BlockPuller((TcpBlockTransport(channels), GrpcBlockTransport(channels)), time.monotonic)
    home = Home(identity.node_id, identity.model_digest, identity.layout)
    return Bringer(home, node, carrier, puller, time.monotonic)


def add_kvcache_service(both: tuple[BlockSource, KvCacheServicer], server: grpc.aio.Server) -> None:
    """PullBlocks by the source, all else by the servicer."""
    source, servicer = both
    kvcache_pb2_grpc.add_KvCacheServiceServicer_to_server(servicer, server)
    add_block_source(source, server)


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
