"""A worker's attachment: refused at start with one line that helps, renewed, and lost with its lease."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from forebay.errors import ForebayError, StartError, WorkerLostError
from forebay.kv.layout import AxisOrder
from forebay.role import Role
from forebay.testing.attached_worker import MODEL, attached_worker
from forebay.testing.fake_engine import LAYOUT
from forebay.testing.waiting import until
from forebay.v1 import kvcache_pb2
from forebay.worker import kv_rights
from forebay.worker.arena_map import map_segment
from forebay.worker.attachment import KvLink, attach_request
from forebay.worker.kv_rights import KvRights

Start = Callable[..., Any]


class Listener:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.attached: list[object] = []
        self.lost: list[str] = []
        self.short: list[int] = []
        self.detached_count = 0

    def on_attached(self, attachment: object) -> None:
        self.attached.append(attachment)

    def on_detached(self) -> None:
        self.detached_count += 1

    def on_lost(self, sequence_ids: frozenset[str]) -> None:
        self.lost += sequence_ids

    def on_short(self, priority: int) -> None:
        self.short.append(priority)


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (dataclasses.replace(MODEL, digest="another"), "same --model"),
        (dataclasses.replace(MODEL, arithmetic="native-bfloat16-a8"), "--chip-class"),
        (dataclasses.replace(MODEL, layout=dataclasses.replace(LAYOUT, block_tokens=8)), "--chip-class"),
        (
            dataclasses.replace(MODEL, layout=dataclasses.replace(LAYOUT, order=AxisOrder.LAYER_KV_TOKEN_HEAD)),
            "--chip-class",
        ),
    ],
)
async def test_a_worker_that_differs_cannot_start_and_says_what_to_do(
    start_kvcache: Start, model: Any, advice: str
) -> None:
    async with start_kvcache() as kvcache:
        with pytest.raises(StartError) as caught:
            async with attached_worker(kvcache.address, model=model):
                pass
        assert advice in caught.value.message
        assert "\n" not in caught.value.message
        async with attached_worker(kvcache.address):
            assert kvcache.stats().attachments == 1


async def test_a_service_that_is_not_there_is_named() -> None:
    link = KvLink("127.0.0.1:1", kvcache_pb2.AttachWorkerRequest(), Listener())
    with pytest.raises(StartError, match=r"127\.0\.0\.1:1 .*--kvcache"):
        await link.open(timeout_s=0.3)


async def test_leases_are_renewed_while_the_service_answers(start_kvcache: Start) -> None:
    async with start_kvcache(lease_s=0.4) as kvcache, attached_worker(kvcache.address) as worker:
        grant = await worker.rights.acquire("s", [], 2)
        assert len(grant.block_ids) == 2
        first_end = worker.link._lease_ends_s
        await until(lambda: worker.link._lease_ends_s > first_end + 0.8)  # two leases on
        assert worker.rights.owns("s")
        worker.rights.release("s")
        await until(kvcache.is_all_released)


async def test_a_lease_that_is_not_renewed_ends_before_the_service_gives_it_away(start_kvcache: Start) -> None:
    now_s, listener = 0.0, Listener()
    async with start_kvcache(lease_s=60) as kvcache:
        request = attach_request("w", Role.DECODE, MODEL.digest, LAYOUT, MODEL.arithmetic)
        link = KvLink(kvcache.address, request, listener, lambda: now_s)
        await link.open(timeout_s=5)
        assert link.is_lease_valid()
        now_s = 60.0
        assert not link.is_lease_valid()
        link.owned_epochs["s"] = 1
        link.detach()
        await until(lambda: listener.attached)
        assert listener.lost == ["s"]
        assert link.is_lease_valid()
        await link.close()


async def test_a_lease_counts_from_the_question_not_from_a_late_answer(start_kvcache: Start) -> None:
    now_s = 0.0
    async with start_kvcache(lease_s=4) as kvcache:  # asks again each second, by the real clock
        link = KvLink(
            kvcache.address,
            attach_request("w", Role.DECODE, MODEL.digest, LAYOUT, MODEL.arithmetic),
            Listener(),
            lambda: now_s,
        )
        await link.open(timeout_s=5)
        kvcache.servicer.renew_gate.clear()
        now_s = 1.0
        await until(lambda: kvcache.servicer.heartbeats)
        now_s = 4.5
        assert not link.is_lease_valid()
        kvcache.servicer.renew_gate.set()
        await until(link.is_lease_valid)
        now_s = 5.0
        assert not link.is_lease_valid()
        await link.close()


async def test_a_grant_whose_answer_took_a_lease_is_not_used(start_kvcache: Start) -> None:
    now_s = 0.0
    async with start_kvcache(lease_s=60) as kvcache:
        link = KvLink(
            kvcache.address,
            attach_request("w", Role.DECODE, MODEL.digest, LAYOUT, MODEL.arithmetic),
            Listener(),
            lambda: now_s,
        )
        await link.open(timeout_s=5)
        rights = KvRights(link)
        rights.start()
        kvcache.servicer.acquire_gate.clear()
        asking = asyncio.create_task(rights.acquire("s", [], 2))
        await until(lambda: kvcache.stats().sequences == 1)
        now_s = 60.0
        kvcache.servicer.acquire_gate.set()
        with pytest.raises(WorkerLostError):
            await asking
        assert not rights.owns("s")
        await until(kvcache.is_all_released)
        await rights.close()
        await link.close()


async def test_a_grant_whose_answer_was_lost_is_freed_by_the_heartbeats_that_do_not_name_it(
    start_kvcache: Start,
) -> None:
    async with start_kvcache(lease_s=0.4) as kvcache, attached_worker(kvcache.address) as worker:
        await worker.rights.acquire("known", [], 2)
        await worker.link.stub.AcquireBlocks(
            kvcache_pb2.AcquireBlocksRequest(
                attachment_id=worker.link.attachment.attachment_id,
                sequence_id="unknown",
                new_sequence=kvcache_pb2.NewSequence(block_count=3),
            )
        )
        await until(lambda: kvcache.stats().tiers[0].leased == 2)
        assert worker.rights.owns("known")
        worker.rights.release("known")


async def test_a_lost_sequence_cannot_be_extended(start_kvcache: Start) -> None:
    async with start_kvcache() as kvcache, attached_worker(kvcache.address) as worker:
        grant = await worker.rights.acquire("s", [], 2)
        kvcache.node.release(worker.link.attachment.attachment_id, [("s", grant.epoch)])
        with pytest.raises(WorkerLostError):
            await worker.rights.extend("s", 1)
        assert not worker.rights.owns("s")


async def test_blocks_for_a_sequence_that_was_lost_meanwhile_are_not_used(start_kvcache: Start) -> None:
    async with start_kvcache() as kvcache, attached_worker(kvcache.address) as worker:
        await worker.rights.acquire("s", [], 2)
        kvcache.servicer.acquire_gate.clear()
        extending = asyncio.create_task(worker.rights.extend("s", 1))
        await until(lambda: kvcache.stats().tiers[0].leased == 3)
        worker.link.lose(["s"])
        kvcache.servicer.acquire_gate.set()
        with pytest.raises(WorkerLostError):
            await extending
        assert not worker.rights.owns("s")
        worker.rights.release("s")
        await until(kvcache.is_all_released)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shm_name": "/forebay-is-not-there"}, "/dev/shm"),
        ({"block_count": 1 << 20}, "larger /dev/shm"),
        ({"size_bytes": 1 << 40}, "larger /dev/shm"),
        ({"block_stride_bytes": 8}, "--chip-class"),
    ],
)
async def test_memory_that_does_not_fit_is_refused_in_words(
    start_kvcache: Start, changes: dict[str, Any], says: str
) -> None:
    async with start_kvcache() as kvcache, attached_worker(kvcache.address) as worker:
        segment = dataclasses.replace(worker.link.attachment.segments[0], **changes)
        with pytest.raises(ForebayError) as caught:
            map_segment(segment, LAYOUT.block_bytes)
        assert says in caught.value.message


async def test_what_is_lost_is_named_until_it_is_released(
    start_kvcache: Start,
) -> None:
    async with start_kvcache(lease_s=0.4) as kvcache, attached_worker(kvcache.address) as worker:
        await worker.rights.acquire("s", [], 2)
        worker.link.detach()
        await until(lambda: not worker.rights.owns("s") and worker.link.attachment is not None)
        heard = len(kvcache.servicer.heartbeats)
        await until(lambda: len(kvcache.servicer.heartbeats) > heard + 2)
        assert [one.sequence_id for one in kvcache.servicer.heartbeats[-1].sequences] == ["s"]
        assert kvcache.stats().tiers[0].leased == 2, "a step may be writing to them"
        worker.rights.release("s")
        await until(kvcache.is_all_released)


async def test_a_grant_of_an_attachment_that_has_ended_is_not_used(start_kvcache: Start) -> None:
    async with start_kvcache() as kvcache, attached_worker(kvcache.address) as worker:
        kvcache.servicer.acquire_gate.clear()
        asking = asyncio.create_task(worker.rights.acquire("s", [], 2))
        await until(lambda: kvcache.stats().sequences == 1)
        before = worker.link.attachment
        worker.link.detach()
        await until(lambda: worker.link.attachment not in (None, before))
        kvcache.servicer.acquire_gate.set()
        with pytest.raises(WorkerLostError):
            await asking
        assert not worker.rights.owns("s"), "the service has fenced it"


async def test_what_is_handed_over_is_not_taken_for_lost(start_kvcache: Start) -> None:
    async with start_kvcache(lease_s=0.4) as kvcache, attached_worker(kvcache.address) as worker:
        await worker.rights.acquire("s", [], 2)
        await worker.rights.hand_over("s", 0, [])
        assert not worker.rights.owns("s")
        heard = len(kvcache.servicer.heartbeats)
        await until(lambda: len(kvcache.servicer.heartbeats) > heard + 1)
        assert not kvcache.servicer.heartbeats[-1].sequences
        assert not worker.link.lost_epochs
        worker.rights.release("s")
        await until(kvcache.is_all_released)


@pytest.mark.parametrize("is_held", [False, True])
async def test_what_was_granted_without_an_answer_is_given_back_at_once(
    start_kvcache: Start, monkeypatch: pytest.MonkeyPatch, is_held: bool
) -> None:
    """A worker that was frozen finds the deadline of its call gone by, and its answer with it."""
    monkeypatch.setattr(kv_rights, "CALL_TIMEOUT_S", 0.2)
    async with start_kvcache(lease_s=60) as kvcache, attached_worker(kvcache.address) as worker:
        if is_held:  # by this very worker, which may be writing to it
            epoch = (await worker.rights.acquire("s", [], 2)).epoch
        kvcache.servicer.acquire_gate.clear()
        asked = worker.rights.take_over("s", epoch, 0) if is_held else worker.rights.acquire("s", [], 2)
        with pytest.raises(WorkerLostError):
            await asked
        if is_held:
            assert kvcache.stats().sequences == 1
            worker.rights.release("s")
        await until(kvcache.is_all_released, timeout_s=5)
        kvcache.servicer.acquire_gate.set()
