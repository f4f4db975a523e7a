"""Pulls between two ends on real sockets: over gRPC and over a data connection the same bytes and the same statuses."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from xxhash import xxh3_128_digest

from forebay.errors import (
    BlockCorruptError,
    BlockNotSealedError,
    Code,
    DeadlineExceededError,
    ForebayError,
    LayoutMismatchError,
    NoDataConnectionError,
    RemoteError,
    UnknownBlockError,
    WorkerLostError,
)
from forebay.kv.block_transport import BlockTarget, BlockTransport, PullOutcome, PullRequest, SourceNode
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout
from forebay.kv.pull_frame import Frame
from forebay.kv.pull_sink import PullSink
from forebay.kvcache.transfer.peer_channels import MOST_CHANNELS, PeerChannels
from forebay.kvcache.transfer.puller import BlockPuller
from forebay.kvcache.transfer.source import SERVICE, BlockSource, add_block_source
from forebay.testing.kv_worker import numbered_hashes as hashes
from forebay.testing.plain_blocks import PlainTarget, random_block
from forebay.testing.waiting import until

LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=12, kv_heads=3, head_dim=64, block_tokens=32)  # 294,912 bytes
SEQUENCE = "request-1"


def content_of(block_hash: bytes) -> bytearray:
    return random_block(block_hash, LAYOUT.block_bytes)


def puller(*transports: BlockTransport) -> BlockPuller:
    return BlockPuller(transports, time.monotonic)


def check(target: PlainTarget, outcome: PullOutcome, count: int) -> None:
    """Each block is right or said to be missing, not both; none arrived twice."""
    assert sorted({*outcome.arrived, *outcome.missing}) == list(range(count))
    assert not set(outcome.arrived) & set(outcome.missing)
    assert sorted(target.arrivals) == list(outcome.arrived)
    for index in outcome.arrived:
        assert target.blocks[index] == content_of(hashes(count)[index])


def reasons(outcome: PullOutcome) -> dict[int, type[ForebayError]]:
    return {index: type(error) for index, error in outcome.missing.items()}


class Slow:
    """A BlockTransport over which each frame takes two seconds of its own clock, and a block several of them."""

    def __init__(self) -> None:
        self.now_s, self.looks = 0.0, 0

    def clock(self) -> float:
        self.looks += 1
        return self.now_s

    def reaches(self, source: SourceNode) -> bool:
        return True

    async def pull(self, request: PullRequest, sink: PullSink, target: BlockTarget, timeout_s: float) -> None:
        sink.begin_session()
        block, frame_bytes = content_of(request.block_hashes[0]), len(content_of(request.block_hashes[0])) // 8
        for offset in range(0, len(block), frame_bytes):
            is_last = offset + frame_bytes == len(block)
            frame = Frame(0, offset, frame_bytes, xxh3_128_digest(block) if is_last else None)
            target.memory(0)[offset : frame.end_bytes] = block[offset : frame.end_bytes]
            settled = sink.settle(frame, sink.place(frame), lambda index: xxh3_128_digest(target.memory(index)))
            if settled.arrived is not None:
                target.arrived(settled.arrived)
            self.now_s, looks = self.now_s + 2, self.looks
            await until(lambda looks=looks: self.looks > looks + 1)  # type: ignore[misc]


async def test_a_block_that_comes_slowly_is_not_taken_for_none(ends: Any) -> None:
    slow, target = Slow(), PlainTarget(1, LAYOUT.block_bytes)
    outcome = await BlockPuller([slow], slow.clock, stall_s=3.0).pull(ends.request(1, timeout_s=100), target)
    check(target, outcome, 1)
    assert outcome.arrived == (0,)


async def test_channels_to_nodes_that_are_gone_are_not_kept() -> None:
    channels = PeerChannels()
    async with channels.to("127.0.0.1:1") as used:
        for port in range(2, 2 * MOST_CHANNELS):
            async with channels.to(f"127.0.0.1:{port}"):
                pass
        assert len(channels) == MOST_CHANNELS
        async with channels.to("127.0.0.1:1") as again:
            assert again is used, "it is in use, though the oldest"
    await channels.close()


async def test_all_blocks_arrive_in_order(ends: Any, transport: BlockTransport) -> None:
    count = 80  # more than the window
    ends.seal(count)
    target = PlainTarget(count, LAYOUT.block_bytes)
    outcome = await puller(transport).pull(ends.request(count), target)
    check(target, outcome, count)
    assert not outcome.missing
    assert target.arrivals == list(range(count))
    await ends.all_given_back()


async def test_blocks_are_pulled_while_they_are_sealed(ends: Any, transport: BlockTransport) -> None:
    ends.blocks.begin(SEQUENCE)
    ends.seal(2)
    target = PlainTarget(5, LAYOUT.block_bytes)
    pulling = asyncio.create_task(puller(transport).pull(ends.request(5, seal_wait_s=20, sequence_id=SEQUENCE), target))
    for sealed in range(2, 5):
        await until(lambda sealed=sealed: len(target.arrivals) == sealed)
        ends.seal(1, first=sealed, sequence_id=SEQUENCE)
    outcome = await pulling
    check(target, outcome, 5)
    assert not outcome.missing
    await ends.all_given_back()


@pytest.mark.parametrize(
    ("ending", "expected"), [("end", UnknownBlockError), ("lose", WorkerLostError), (None, BlockNotSealedError)]
)
async def test_what_is_never_sealed_is_said(
    ends: Any, transport: BlockTransport, ending: str | None, expected: type[ForebayError]
) -> None:
    ends.blocks.begin(SEQUENCE)
    ends.seal(3)

    def on_arrival(index: int) -> None:
        if index == 2 and ending is not None:
            getattr(ends.blocks, ending)(SEQUENCE)

    target = PlainTarget(5, LAYOUT.block_bytes, on_arrival)
    wait_s = 0.2 if ending is None else 20
    outcome = await puller(transport).pull(ends.request(5, seal_wait_s=wait_s, sequence_id=SEQUENCE), target)
    check(target, outcome, 5)
    assert reasons(outcome) == {3: expected, 4: expected}
    assert outcome.missing[3].metadata["block_index"] == "3"
    await ends.all_given_back()


async def test_an_unknown_block_comes_after_all_before_it(ends: Any, transport: BlockTransport) -> None:
    ends.seal(70)
    target = PlainTarget(72, LAYOUT.block_bytes)
    outcome = await puller(transport).pull(ends.request(72), target)
    check(target, outcome, 72)
    assert reasons(outcome) == {70: UnknownBlockError, 71: UnknownBlockError}
    await ends.all_given_back()


async def test_a_block_spoilt_at_the_source_fails_alone(ends: Any, transport: BlockTransport) -> None:
    ends.seal(4)
    spoilt = content_of(hashes(4)[2])
    ends.blocks.seal(hashes(4)[2], spoilt)
    spoilt[7] ^= 1
    target = PlainTarget(4, LAYOUT.block_bytes)
    outcome = await puller(transport).pull(ends.request(4), target)
    check(target, outcome, 4)
    assert reasons(outcome) == {2: BlockCorruptError}
    await ends.all_given_back()


async def test_a_block_spoilt_on_its_way_is_asked_for_again(ends: Any, transport: BlockTransport) -> None:
    ends.seal(4)
    asked: list[int] = []

    class Spoiling(PlainTarget):
        def memory(self, block_index: int) -> memoryview:
            view = super().memory(block_index)
            asked.append(block_index)
            if asked.count(1) == 2 and block_index == 1:  # the first was to write it, this is to verify it
                view[9] ^= 1
            return view

    target = Spoiling(4, LAYOUT.block_bytes)
    outcome = await puller(transport).pull(ends.request(4), target)
    check(target, outcome, 4)
    assert not outcome.missing
    assert asked.count(1) == 4  # written and verified, twice


async def test_a_cancel_gives_blocks_back_and_ends_writing(ends: Any, transport: BlockTransport) -> None:
    ends.blocks.begin(SEQUENCE)
    ends.seal(3)
    target = PlainTarget(5, LAYOUT.block_bytes)
    pulling = asyncio.create_task(puller(transport).pull(ends.request(5, seal_wait_s=20, sequence_id=SEQUENCE), target))
    await until(lambda: len(target.arrivals) == 3)
    assert ends.blocks.references == 3
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    await ends.all_given_back()
    ends.seal(2, first=3, sequence_id=SEQUENCE)
    assert target.arrivals == [0, 1, 2]
    assert ends.blocks.references == 0


async def test_cancels_at_any_moment_leave_nothing_behind(ends: Any, transport: BlockTransport) -> None:
    ends.seal(120)
    one = puller(transport)

    async def cancelled_at(block_index: int) -> list[int]:
        def on_arrival(index: int) -> None:
            if index == block_index:
                pulling.cancel()

        target = PlainTarget(120, LAYOUT.block_bytes, on_arrival)
        pulling = asyncio.create_task(one.pull(ends.request(120), target))
        await asyncio.wait((pulling,))
        assert pulling.cancelled()
        return target.arrivals

    for arrivals in await asyncio.gather(*map(cancelled_at, range(0, 100, 9))):
        assert arrivals == list(range(len(arrivals)))
        assert len(arrivals) < 120
    await ends.all_given_back()
    target = PlainTarget(120, LAYOUT.block_bytes)
    check(target, await one.pull(ends.request(120), target), 120)


async def test_the_deadline_ends_both_sides(ends: Any, transport: BlockTransport) -> None:
    ends.blocks.begin(SEQUENCE)
    ends.seal(1)
    target = PlainTarget(2, LAYOUT.block_bytes)
    request = ends.request(2, timeout_s=0.5, seal_wait_s=20, sequence_id=SEQUENCE)
    outcome = await puller(transport).pull(request, target)
    check(target, outcome, 2)
    assert reasons(outcome) == {1: DeadlineExceededError}
    await ends.all_given_back()


async def test_many_pulls_at_once_and_a_small_one_passes_a_large_one(ends: Any, transport: BlockTransport) -> None:
    ends.seal(300)
    large, small = PlainTarget(300, LAYOUT.block_bytes), [PlainTarget(3, LAYOUT.block_bytes) for _ in range(20)]
    one = puller(transport)
    pulling = asyncio.create_task(one.pull(ends.request(300), large))
    await until(lambda: large.arrivals)
    outcomes = await asyncio.gather(*(one.pull(ends.request(3), target) for target in small))
    assert len(large.arrivals) < 300  # not first come, all served
    for target, outcome in zip(small, outcomes, strict=True):
        check(target, outcome, 3)
        assert not outcome.missing
    check(large, await pulling, 300)
    await ends.all_given_back()


async def test_a_layout_that_differs_is_refused(ends: Any, transport: BlockTransport) -> None:
    other = KvLayout(KvDtype.BFLOAT16, 12, 3, 64, 32, AxisOrder.LAYER_KV_TOKEN_HEAD)  # the same number of bytes
    request = PullRequest(ends.node, hashes(1), other, 20)
    outcome = await puller(transport).pull(request, PlainTarget(1, other.block_bytes))
    assert reasons(outcome) == {0: LayoutMismatchError}


async def test_without_a_data_connection_grpc_is_the_fallback(new_ends: Any) -> None:
    ends = new_ends()
    ends.server.add(add_block_source, BlockSource(ends.blocks, None), SERVICE)
    ends.node = SourceNode("far", await ends.server.start())
    ends.seal(3)
    alone = await puller(ends.tcp).pull(ends.request(3), PlainTarget(3, LAYOUT.block_bytes))
    assert set(reasons(alone).values()) == {NoDataConnectionError}
    target = PlainTarget(3, LAYOUT.block_bytes)
    outcome = await puller(ends.tcp, ends.grpc).pull(ends.request(3), target)
    check(target, outcome, 3)
    assert not outcome.missing
    await ends.channels.close()
    await ends.server.stop(0)


async def test_nobody_at_the_address_is_said(ends: Any, transport: BlockTransport, free_address: str) -> None:
    request = PullRequest(SourceNode("nowhere", free_address), hashes(2), LAYOUT, 20)
    outcome = await puller(transport).pull(request, PlainTarget(2, LAYOUT.block_bytes))
    assert reasons(outcome) == {0: RemoteError, 1: RemoteError}


async def test_a_broken_session_resumes_by_block(ends: Any, transport: BlockTransport) -> None:
    """The link is cut twice, each time after some blocks; those that have arrived are not written again."""
    ends.seal(60)
    cuts: list[Callable[[], None]] = []
    target = PlainTarget(60, LAYOUT.block_bytes)

    class Cut:
        def reaches(self, source: SourceNode) -> bool:
            return True

        async def pull(self, request: PullRequest, sink: PullSink, target: PlainTarget, timeout_s: float) -> None:
            session = asyncio.create_task(transport.pull(request, sink, target, timeout_s))
            before = len(target.arrivals)
            while not session.done() and (len(cuts) == 2 or len(target.arrivals) < before + 7):
                await asyncio.wait((session,), timeout=0.001)
            if session.done():
                return await session
            cuts.append(session.cancel)
            session.cancel()
            await asyncio.wait((session,))
            raise RemoteError(Code.UNAVAILABLE, "cut")

    outcome = await puller(Cut()).pull(ends.request(60), target)
    check(target, outcome, 60)
    assert not outcome.missing
    assert len(cuts) == 2
    await ends.all_given_back()
