"""Every RPC of a KV-cache service on a real server on loopback: answers, status codes and reasons."""

import os
from contextlib import closing
from typing import Any

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
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena
from forebay.role import Role
from forebay.rpc.status import translated
from forebay.testing.kv_worker import ARITHMETIC
from forebay.testing.kv_worker import numbered_hashes as hashes
from forebay.testing.kv_worker import seal_entry as entry
from forebay.v1 import common_pb2, kvcache_pb2, pull_pb2
from forebay.v1.kvcache_pb2 import NewSequence
from forebay.wire.layout import layout_to_proto
from forebay.wire.tier import tier_to_proto
from forebay.worker.attachment import attach_request

LAYOUT = KvLayout(KvDtype.FLOAT32, layers=1, kv_heads=1, head_dim=2, block_tokens=3)  # 48 bytes a block
LEASE_S, GRACE_S = 10.0, 2.0


async def test_attached_says_where_the_memory_is(service: Any) -> None:
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
async def test_attach_refuses(service: Any, fields: dict[str, object], error: type[ForebayError], field: str) -> None:
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
    service: Any, layout: common_pb2.KvLayout, error: type[ForebayError], field: str
) -> None:
    request = attach_request("w", Role.PREFILL, "digest", LAYOUT, ARITHMETIC)
    request.layout.CopyFrom(layout)
    with pytest.raises(error) as caught, translated():
        await service.stub.AttachWorker(request, timeout=10).read()
    assert caught.value.field == field
    assert (error is LayoutMismatchError) == ("this node's: dtype bfloat16, not float32" in caught.value.message)


async def test_a_worker_attaches_once_at_a_time(service: Any) -> None:
    first = await service.attach()
    with pytest.raises(DuplicateWorkerError):
        await service.attach()
    first.stream.cancel()
    await until_detached(service)
    assert (await service.attach()).attachment_id > first.attachment_id


async def test_a_draining_service_takes_nothing_new(service: Any) -> None:
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
async def test_acquire_names_the_field(service: Any, sequence_id: str, grant: dict[str, object], field: str) -> None:
    worker = await service.attach()
    assert (await worker.begin("s", 1)).epoch == 2
    with pytest.raises(InvalidFieldError) as caught:
        await worker.acquire(sequence_id, **grant)
    assert caught.value.field == field
    assert service.node.stats().tiers[0].leased == 1


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        (hashes(3), "3 prefix hashes are more than the 2 blocks wanted"),
        (hashes(1) * 2, "a prefix hash comes twice"),
        ([*hashes(1), b"short"], r"16 bytes; number 1 \(from 0\) has 5"),
    ],
)
async def test_what_is_wrong_with_a_prefix_is_said(service: Any, prefix: list[bytes], words: str) -> None:
    worker = await service.attach()
    with pytest.raises(InvalidFieldError, match=words):
        await worker.begin("s", 2, prefix)


async def test_acquire_refuses_what_cannot_be_granted(service: Any) -> None:
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


async def test_unknown_attachments_have_no_rights(service: Any) -> None:
    worker = await service.attach()
    worker.attachment_id += 1
    for call in (worker.begin(), worker.seal(entry(1)), worker.release(("s", 1)), worker.renew(("s", 1))):
        with pytest.raises(NotAttachedError):
            await call


async def test_hand_over_copies_nothing(service: Any) -> None:
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


async def test_a_request_cancelled_between_hand_over_and_take_over_holds_nothing(service: Any) -> None:
    prefill, decode = await service.attach("prefill"), await service.attach("decode")
    (sealed,) = await prefill.seal(entry((await prefill.begin()).epoch, hand_over=True))
    assert await decode.release(("s", sealed.epoch)) == 1
    assert service.node.stats().tiers[0].leased == 0


async def test_each_seal_entry_is_judged_by_itself(service: Any) -> None:
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


async def test_a_prefix_is_found_demoted_and_promoted_with_its_content(service: Any) -> None:
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


async def test_find_missing_tells_tiers_and_order(service: Any) -> None:
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
async def test_find_missing_refuses(service: Any, asked: list[bytes]) -> None:
    with pytest.raises(InvalidFieldError) as caught, translated():
        await service.stub.FindMissingBlocks(kvcache_pb2.FindMissingBlocksRequest(block_hashes=asked))
    assert caught.value.field == "block_hashes"


async def test_a_lease_that_is_not_renewed_is_revoked_then_fenced_until_its_worker_lets_go(
    service: Any, caplog: pytest.LogCaptureFixture
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


async def test_a_worker_that_attaches_again_lets_go_of_what_it_does_not_name(service: Any) -> None:
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


async def test_dump_is_what_the_events_tell(service: Any) -> None:
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


async def test_a_large_index_comes_in_pages(service_over: Any) -> None:
    with (
        closing(Arena(f"test-{os.getpid()}-large", Tier.DEVICE, 5000 * 64, LAYOUT.block_bytes)) as device,
        closing(Arena(f"test-{os.getpid()}-large", Tier.HOST, 64, LAYOUT.block_bytes)) as host,
    ):
        service = service_over([device, host])
        await service.start()
        worker = await service.attach()
        await service.cache(worker, "one", hashes(4097))
        pages = [page async for page in service.stub.DumpIndex(kvcache_pb2.DumpIndexRequest())]
        assert [(len(page.entries), page.last_event_number) for page in pages] == [(4096, 2), (1, 2)]
        await service.stop()


async def test_what_comes_later_says_so(service: Any) -> None:
    with pytest.raises(NotServedYetError), translated():
        await service.stub.PullBlocks(iter((pull_pb2.PullBlocksRequest(),))).read()


async def until_detached(service: Any) -> None:
    async def attached() -> int:
        stats: kvcache_pb2.GetStatsResponse = await service.stub.GetStats(kvcache_pb2.GetStatsRequest())
        return stats.attached_workers

    while await attached():
        pass


async def test_a_tenant_of_unbearable_length_is_refused(service: Any) -> None:
    worker = await service.attach()
    with pytest.raises(InvalidFieldError) as refused:
        await worker.acquire("s", new_sequence=NewSequence(block_count=1, tenant="x" * 257))
    assert refused.value.field == "new_sequence.tenant"
    assert len((await worker.acquire("s", new_sequence={"block_count": 1, "tenant": "x" * 256})).block_ids) == 1


async def test_what_could_not_be_copied_is_never_found_and_ends_the_service(service: Any) -> None:
    worker = await service.attach()
    await service.cache(worker, "old", hashes(1))
    await service.cache(worker, "others", hashes(8, first=50))
    assert service.node.find(hashes(1)[0]) is Tier.HOST
    service.arenas[Tier.DEVICE].view.release()
    with pytest.raises(ForebayError):
        await worker.begin("first", 1, hashes(1))
    with pytest.raises(DrainingError):
        await worker.begin("second", 1, hashes(1))
    with pytest.raises(ValueError, match="released"):
        service.node.tick()
