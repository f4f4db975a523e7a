"""Every RPC of a KV-cache service on a real server on loopback: answers, status codes and reasons."""

import itertools
import os
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from forebay.errors import (
    Code,
    DrainingError,
    DuplicateRequestError,
    DuplicateWorkerError,
    ForebayError,
    InvalidFieldError,
    KvExhaustedError,
    LayoutMismatchError,
    ModelMismatchError,
    NotAttachedError,
    NotServedYetError,
    StaleEpochError,
    UnknownSequenceError,
    WriterActiveError,
)
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
from forebay.role import Role
from forebay.rpc.channel import open_channel
from forebay.rpc.server import Server
from forebay.rpc.status import translated
from forebay.testing.kv_worker import ARITHMETIC, KvWorker, attach
from forebay.testing.kv_worker import numbered_hashes as hashes
from forebay.testing.kv_worker import seal_entry as entry
from forebay.v1 import common_pb2, kvcache_pb2, kvcache_pb2_grpc, pull_pb2
from forebay.v1.kvcache_pb2 import NewSequence
from forebay.wire.layout import layout_to_proto
from forebay.wire.tier import tier_to_proto
from forebay.worker.attachment import attach_request

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
        stride_bytes = arenas[0].block_stride_bytes
        store = TieredStore(StoreSettings(*(arena.block_count for arena in arenas), kept_after_uses=1))
        carrier = Carrier(
            BlockMover({arena.tier: arena.view for arena in arenas}, stride_bytes, LAYOUT.block_bytes), {}
        )
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


async def test_attached_says_where_the_memory_is(service: Service) -> None:
    attached = (await service.attach()).attached
    assert (attached.node_id, attached.lease_s) == ("node", LEASE_S)
    assert 0 < attached.renew_interval_s < LEASE_S / 2
    device, host = attached.segments
    assert (device.tier, device.block_count, device.block_stride_bytes) == (common_pb2.KV_TIER_DEVICE, 8, 64)
    assert (host.tier, host.block_count) == (common_pb2.KV_TIER_HOST, 4)
    assert device.size_bytes == 8 * 64


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"worker_id": ""}, InvalidFieldError, "worker_id"),
        ({"worker_id": "x" * 257}, InvalidFieldError, "worker_id"),
        ({"pid": 0}, InvalidFieldError, "pid"),
        ({"process_start_ticks": 0}, InvalidFieldError, "process_start_ticks"),
        ({"process_start_ticks": 1}, InvalidFieldError, "pid"),
        ({"role": common_pb2.SERVICE_ROLE_ROUTER}, InvalidFieldError, "role"),
        ({"model_digest": "other"}, ModelMismatchError, "model_digest"),
        ({"arithmetic": "native-bfloat16-a8"}, ModelMismatchError, "arithmetic"),
        ({"arithmetic": ""}, ModelMismatchError, "arithmetic"),
    ],
)
async def test_attach_refuses(
    service: Service, fields: dict[str, object], error: type[ForebayError], field: str
) -> None:
    with pytest.raises(error) as caught:
        await service.attach(**{"worker_id": "w", **fields})
    assert caught.value.field == field
    assert service.node.stats().attachments == 0


@pytest.mark.parametrize(
    ("layout", "error", "field"),
    [
        (layout_to_proto(KvLayout(KvDtype.BFLOAT16, 1, 1, 2, 3)), LayoutMismatchError, "layout"),
        (common_pb2.KvLayout(), InvalidFieldError, "layout.dtype"),
    ],
)
async def test_attach_refuses_a_layout(
    service: Service, layout: common_pb2.KvLayout, error: type[ForebayError], field: str
) -> None:
    request = attach_request("w", Role.PREFILL, "digest", LAYOUT, ARITHMETIC)
    request.layout.CopyFrom(layout)
    with pytest.raises(error) as caught, translated():
        await service.stub.AttachWorker(request, timeout=10).read()
    assert caught.value.field == field
    assert (error is LayoutMismatchError) == ("this node's: dtype bfloat16, not float32" in caught.value.message)


async def test_a_worker_attaches_once_at_a_time(service: Service) -> None:
    first = await service.attach()
    with pytest.raises(DuplicateWorkerError):
        await service.attach()
    first.stream.cancel()
    await until_detached(service)
    assert (await service.attach()).attachment_id > first.attachment_id


async def test_a_draining_service_takes_nothing_new(service: Service) -> None:
    worker = await service.attach()
    epoch = (await worker.begin()).epoch
    service.node.drain()
    with pytest.raises(DrainingError):
        await service.attach("other")
    with pytest.raises(DrainingError):
        await worker.begin("t")
    assert len((await worker.extend(epoch, 1)).block_ids) == 3


@pytest.mark.parametrize(
    ("sequence_id", "grant", "field"),
    [
        ("", {"new_sequence": NewSequence(block_count=1)}, "sequence_id"),
        ("x", {}, "grant"),
        ("x", {"new_sequence": NewSequence(block_count=0)}, "new_sequence.block_count"),
        ("x", {"new_sequence": NewSequence(block_count=9)}, "new_sequence.block_count"),
        ("x", {"new_sequence": NewSequence(block_count=1, prefix_hashes=hashes(2))}, "new_sequence.prefix_hashes"),
        ("x", {"new_sequence": NewSequence(block_count=2, prefix_hashes=hashes(1) * 2)}, "new_sequence.prefix_hashes"),
        ("x", {"new_sequence": NewSequence(block_count=1, prefix_hashes=[b"short"])}, "new_sequence.prefix_hashes"),
        ("s", {"extend": kvcache_pb2.Extend(epoch=2, block_count=0)}, "extend.block_count"),
    ],
)
async def test_acquire_names_the_field(
    service: Service, sequence_id: str, grant: dict[str, object], field: str
) -> None:
    worker = await service.attach()
    assert (await worker.begin("s", 1)).epoch == 2
    with pytest.raises(InvalidFieldError) as caught:
        await worker.acquire(sequence_id, **grant)
    assert caught.value.field == field
    assert service.node.stats().tiers[0].leased == 1


async def test_acquire_refuses_what_cannot_be_granted(service: Service) -> None:
    worker, other = await service.attach(), await service.attach("other")
    epoch = (await worker.begin(block_count=6)).epoch
    with pytest.raises(DuplicateRequestError):
        await other.begin()
    with pytest.raises(KvExhaustedError) as exhausted:
        await other.begin("t", 3)
    assert exhausted.value.metadata == {"wanted_blocks": "3", "available_blocks": "2"}
    with pytest.raises(KvExhaustedError):
        await worker.extend(epoch, 3)
    with pytest.raises(StaleEpochError):
        await other.extend(epoch, 1)
    with pytest.raises(StaleEpochError):
        await other.take_over(epoch - 1)
    with pytest.raises(WriterActiveError) as active:
        await other.take_over(epoch)
    assert active.value.code is Code.UNAVAILABLE
    assert active.value.retry_after_s is not None
    await worker.release(("s", epoch))
    with pytest.raises(UnknownSequenceError):
        await other.take_over(epoch)


async def test_unknown_attachments_have_no_rights(service: Service) -> None:
    worker = await service.attach()
    worker.attachment_id += 1
    for call in (worker.begin(), worker.seal(entry(1)), worker.release(("s", 1)), worker.renew(("s", 1))):
        with pytest.raises(NotAttachedError):
            await call


async def test_hand_over_copies_nothing(service: Service) -> None:
    prefill, decode = await service.attach("prefill"), await service.attach("decode")
    grant = await prefill.begin(block_count=3)
    (sealed,) = await prefill.seal(entry(grant.epoch, hashes(2), hand_over=True))
    assert sealed.epoch > grant.epoch
    assert await prefill.seal(entry(grant.epoch, hashes(2), hand_over=True)) == [sealed], "a repeated message"
    with pytest.raises(StaleEpochError):
        await prefill.extend(grant.epoch, 1)
    taken = await decode.take_over(sealed.epoch, block_count=4)
    assert taken.epoch > sealed.epoch
    assert taken.block_ids[:3] == grant.block_ids
    assert (len(taken.block_ids), taken.cached_block_count, taken.copied_bytes) == (4, 2, 0)
    assert await decode.take_over(sealed.epoch, block_count=4) == taken, "idempotent"
    assert await prefill.release(("s", grant.epoch), ("s", sealed.epoch)) == 0, "stale epochs are ignored"
    assert await decode.release(("s", taken.epoch)) == 1
    assert await decode.release(("s", taken.epoch), ("never", 1)) == 0
    stats = await service.stub.GetStats(kvcache_pb2.GetStatsRequest())
    assert (stats.take_overs, stats.tier_copied_bytes) == (1, 0)
    assert (stats.tiers[0].leased_blocks, stats.tiers[0].sealed_blocks, stats.tiers[0].free_blocks) == (0, 2, 6)
    assert (stats.active_sequences, stats.attached_workers, stats.model_digest) == (0, 2, "digest")
    assert stats.layout == layout_to_proto(LAYOUT)


async def test_a_request_cancelled_between_hand_over_and_take_over_holds_nothing(service: Service) -> None:
    prefill, decode = await service.attach("prefill"), await service.attach("decode")
    (sealed,) = await prefill.seal(entry((await prefill.begin()).epoch, hand_over=True))
    assert await decode.release(("s", sealed.epoch)) == 1
    assert service.node.stats().tiers[0].leased == 0


async def test_each_seal_entry_is_judged_by_itself(service: Service) -> None:
    worker = await service.attach()
    epoch = (await worker.begin(block_count=3)).epoch
    results = await worker.seal(
        entry(epoch, hashes(1)),
        entry(epoch + 1, hashes(1)),
        entry(epoch, hashes(1), sequence_id="never"),
        entry(epoch, (b"short",)),
        entry(epoch, hashes(1, first=5)),  # another hash for a sealed block
        entry(epoch, hashes(1), first_block_index=2),  # a gap
        entry(epoch, hashes(4)),  # beyond the table
        entry(epoch, hashes(2)),  # the first again, and one more
    )
    reasons = [one.error_reason if one.HasField("error_reason") else None for one in results]
    assert reasons == [None, "STALE_EPOCH", "UNKNOWN_SEQUENCE", *["INVALID_FIELD"] * 4, None]
    assert set(service.follower.index) == set(hashes(2))


async def test_a_prefix_is_found_demoted_and_promoted_with_its_content(service: Service) -> None:
    worker = await service.attach()
    prompt, other = hashes(3), hashes(7, first=100)
    await service.cache(worker, "first", prompt)
    again = await worker.begin("again", 4, prompt)
    assert (again.cached_block_count, again.promoted_block_count, again.copied_bytes) == (3, 0, 0)
    await worker.release(("again", again.epoch))
    await service.cache(worker, "other", other)
    assert service.follower.index[prompt[1]] is Tier.HOST
    back = await worker.begin("back", 4, prompt)
    assert back.cached_block_count == 3
    assert back.copied_bytes == back.promoted_block_count * LAYOUT.block_bytes > 0
    assert [bytes(service.block(block_id)[:16]) for block_id in back.block_ids[:3]] == list(prompt)
    stats = await service.stub.GetStats(kvcache_pb2.GetStatsRequest())
    assert (stats.prefix_blocks_asked, stats.prefix_blocks_found) == (6, 6)
    assert stats.tier_copied_bytes >= back.copied_bytes
    for tier in stats.tiers:
        assert tier.free_blocks + tier.leased_blocks + tier.sealed_blocks == tier.capacity_blocks


async def test_find_missing_tells_tiers_and_order(service: Service) -> None:
    worker = await service.attach()
    await service.cache(worker, "old", hashes(2))
    await service.cache(worker, "new", hashes(7, first=100))
    held, lower, missing = hashes(1, first=100)[0], hashes(1, first=1)[0], hashes(1, first=50)[0]
    asked = [lower, missing, held]
    answer = await service.stub.FindMissingBlocks(kvcache_pb2.FindMissingBlocksRequest(block_hashes=asked))
    assert list(answer.missing_block_hashes) == [missing]
    assert [(one.block_hash, one.tier) for one in answer.held_blocks] == [
        (lower, common_pb2.KV_TIER_HOST),
        (held, common_pb2.KV_TIER_DEVICE),
    ]


@pytest.mark.parametrize("asked", [[b"short"], [bytes(16)] * 65_537])
async def test_find_missing_refuses(service: Service, asked: list[bytes]) -> None:
    with pytest.raises(InvalidFieldError) as caught, translated():
        await service.stub.FindMissingBlocks(kvcache_pb2.FindMissingBlocksRequest(block_hashes=asked))
    assert caught.value.field == "block_hashes"


async def test_a_lease_that_is_not_renewed_is_revoked_then_fenced_until_its_worker_lets_go(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    worker = await service.attach()
    kept, dropped = (await worker.begin("kept", 1)).epoch, (await worker.begin("dropped", 1)).epoch
    service.now_s = LEASE_S
    assert await worker.renew(("kept", kept), ("never", 1)) == ["never"]
    service.node.tick()
    assert list((await worker.stream.read()).revoked.sequence_ids) == ["dropped"]
    assert await worker.renew(("kept", kept), ("dropped", dropped)) == ["dropped"]
    assert service.node.stats().tiers[0].leased == 2, "the worker may not have heard of it yet"
    assert caplog.messages == []
    service.now_s += GRACE_S
    for _ in range(3):
        service.node.tick()
    (warning,) = caplog.messages
    assert f"worker w (pid {os.getpid()})" in warning
    assert "1 KV blocks" in warning
    assert service.node.stats().tiers[0].leased == 2, "time alone frees nothing"
    assert await worker.renew(("kept", kept)) == []
    assert service.node.stats().tiers[0].leased == 1


async def test_a_worker_that_attaches_again_lets_go_of_what_it_does_not_name(service: Service) -> None:
    worker = await service.attach()
    named = (await worker.begin("named", 1)).epoch
    await worker.begin("unnamed", 1)
    worker.stream.cancel()
    await until_detached(service)
    again = await service.attach()
    assert service.node.stats().tiers[0].leased == 2
    assert await again.renew(("named", named)) == ["named"]
    assert service.node.stats().tiers[0].leased == 1
    assert (await again.take_over(named, sequence_id="named")).epoch > named


async def test_dump_is_what_the_events_tell(service: Service) -> None:
    empty = [page async for page in service.stub.DumpIndex(kvcache_pb2.DumpIndexRequest())]
    assert [(page.last_event_number, page.incarnation, len(page.entries)) for page in empty] == [(0, 7, 0)]
    worker = await service.attach()
    await service.cache(worker, "one", hashes(8))
    await service.cache(worker, "two", hashes(6, first=100))
    (page,) = [page async for page in service.stub.DumpIndex(kvcache_pb2.DumpIndexRequest())]
    assert page.last_event_number == service.follower.last_number
    expected = {block_hash: tier_to_proto(tier) for block_hash, tier in service.follower.index.items()}
    assert {one.block_hash: one.tier for one in page.entries} == expected
    assert len(expected) == 12


async def test_a_large_index_comes_in_pages() -> None:
    with (
        closing(Arena(f"test-{os.getpid()}-large", Tier.DEVICE, 5000 * 64, LAYOUT.block_bytes)) as device,
        closing(Arena(f"test-{os.getpid()}-large", Tier.HOST, 64, LAYOUT.block_bytes)) as host,
    ):
        service = Service([device, host])
        await service.start()
        worker = await service.attach()
        await service.cache(worker, "one", hashes(4097))
        pages = [page async for page in service.stub.DumpIndex(kvcache_pb2.DumpIndexRequest())]
        assert [(len(page.entries), page.last_event_number) for page in pages] == [(4096, 1), (1, 1)]
        await service.stop()


async def test_what_comes_later_says_so(service: Service) -> None:
    with pytest.raises(NotServedYetError), translated():
        await service.stub.PullBlocks(iter((pull_pb2.PullBlocksRequest(),))).read()


async def until_detached(service: Service) -> None:
    async def attached() -> int:
        stats: kvcache_pb2.GetStatsResponse = await service.stub.GetStats(kvcache_pb2.GetStatsRequest())
        return stats.attached_workers

    while await attached():
        pass
