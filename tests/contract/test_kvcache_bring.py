"""BringBlocks between two real KV-cache services: bytes, layouts, waiting for seals, faults, nothing left behind."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xxhash import xxh3_128_digest

from forebay.errors import DrainingError, ForebayError, InvalidFieldError, LayoutMismatchError, ModelMismatchError
from forebay.kernels.converter_reference import ReferenceConverter
from forebay.kv.conversion import plan_conversion
from forebay.kv.layout import KvDtype, KvLayout
from forebay.rpc.channel import open_channel
from forebay.rpc.status import translated
from forebay.testing.kv_worker import seal_entry
from forebay.testing.kvcache_process import KvCacheProcess, WritingWorker, attach_writer
from forebay.v1 import common_pb2, kvcache_pb2, kvcache_pb2_grpc, pull_pb2
from forebay.wire.layout import layout_from_proto, layout_to_proto

F32 = ("--chip-class", "cpu-f32")
INT8 = ("--chip-class", "cpu-f32-kv8")
SIZES = ("--device-bytes", str(2**20), "--drain-s", "0", "--offer-s", "0.3", "--lease-s", "60")


@dataclass
class Node:
    """A service as a process, and a worker attached to it."""

    process: KvCacheProcess
    address: str
    stub: Any
    writer: WritingWorker
    layout: KvLayout
    model_digest: str

    def manifest(self, hashes: list[bytes], **changes: Any) -> common_pb2.Manifest:
        fields: dict[str, Any] = {
            "node_id": self.process.node_id,
            "kvcache_address": self.address,
            "layout": layout_to_proto(self.layout),
            "token_count": len(hashes) * self.layout.block_tokens,
            "block_hashes": hashes,
            "model_digest": self.model_digest,
        } | changes
        return common_pb2.Manifest(**fields)

    async def stats(self) -> kvcache_pb2.GetStatsResponse:
        response: kvcache_pb2.GetStatsResponse = await self.stub.GetStats(kvcache_pb2.GetStatsRequest())
        return response

    async def until_nothing_is_held(self) -> None:
        async with asyncio.timeout(20):
            while any(tier.leased_blocks or tier.referenced_blocks for tier in (await self.stats()).tiers):
                pass

    async def content(self, hashes: list[bytes]) -> list[bytes]:
        """Bytes of blocks that are found."""
        grant = await self.writer.worker.begin("reader", len(hashes), hashes)
        assert grant.cached_block_count == len(hashes)
        found = [self.writer.content(block) for block in grant.block_ids]
        await self.writer.worker.release(("reader", grant.epoch))
        return found


class Scene:
    """Starts nodes."""

    def __init__(self, model: Path, nats_url: str, stack: AsyncExitStack) -> None:
        self.model, self.nats_url, self.stack = model, nats_url, stack

    async def start(self, *arguments: str) -> Node:
        process = KvCacheProcess(self.model, self.nats_url, *SIZES, *arguments)
        self.stack.callback(process.clear)
        address = await asyncio.to_thread(process.address)
        stub = kvcache_pb2_grpc.KvCacheServiceStub(await self.stack.enter_async_context(open_channel(address)))
        stats = await stub.GetStats(kvcache_pb2.GetStatsRequest())
        layout = layout_from_proto(stats.layout)
        return Node(process, address, stub, await attach_writer(stub), layout, stats.model_digest)


@pytest.fixture
async def scene(tiny_model: Path, nats_url: str) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(tiny_model, nats_url, stack)


def names(text: str, count: int) -> list[bytes]:
    return [xxh3_128_digest(f"{text} {index}".encode()) for index in range(count)]


@asynccontextmanager
async def bringing(to: Node, source: common_pb2.Manifest, hashes: list[bytes], **fields: Any) -> AsyncIterator[Any]:
    """The answer, while what was brought is kept."""
    request = pull_pb2.BringBlocksRequest(
        source=source, block_hashes=hashes, **({"timeout_s": 20.0, "seal_wait_s": 0.0} | fields)
    )
    call = to.stub.BringBlocks(request, timeout=40)
    try:
        with translated():
            yield await anext(aiter(call))
    finally:
        call.cancel()


async def test_blocks_of_the_same_layout_arrive_as_they_are(scene: Scene) -> None:
    near, far = await scene.start(*F32), await scene.start(*F32)
    hashes = names("alike", 5)
    await near.writer.compute("s", hashes)
    async with bringing(far, near.manifest(hashes), hashes) as answer:
        assert (answer.held_blocks, answer.transfer_bytes) == (5, 5 * far.layout.block_bytes)
        assert not answer.HasField("failure")
        assert (await far.stats()).tiers[0].referenced_blocks == 5, "kept until the call ends"
    assert await far.content(hashes) == list(map(near.writer.expected, hashes))
    await far.until_nothing_is_held()
    await near.until_nothing_is_held()


@pytest.mark.parametrize(("source_class", "target_class"), [(F32, INT8), (INT8, F32)])
async def test_blocks_of_another_layout_are_converted(
    scene: Scene, source_class: tuple[str, ...], target_class: tuple[str, ...]
) -> None:
    near, far = await scene.start(*source_class), await scene.start(*target_class)
    source_hashes = names("source", 5)
    covered_tokens = 5 * near.layout.block_tokens
    target_hashes = names("target", covered_tokens // far.layout.block_tokens)
    written = await write_numbers(near, source_hashes)
    async with bringing(far, near.manifest(source_hashes), [*target_hashes, b"0123456789abcdef"]) as answer:
        assert answer.held_blocks == len(target_hashes), "a block that would be filled in part is left out"
        assert not answer.HasField("failure")
    plan = plan_conversion((near.layout,), far.layout)
    expected = [bytearray(far.layout.block_bytes) for _ in target_hashes]
    used = plan.source_block_count(len(target_hashes) * far.layout.block_tokens)
    ReferenceConverter(plan).convert(
        [[memoryview(block) for block in written[:used]]],
        [memoryview(block) for block in expected],
        len(target_hashes) * far.layout.block_tokens,
    )
    assert await far.content(target_hashes) == list(map(bytes, expected))
    await far.until_nothing_is_held()


async def write_numbers(node: Node, hashes: list[bytes]) -> list[bytes]:
    """Seals blocks of numbers that convert without NaN; returns their bytes."""
    random = np.random.default_rng(7)
    numbers = dataclasses.replace(node.layout, dtype=KvDtype.FLOAT32)
    plan = plan_conversion((numbers,), node.layout)
    blocks = []
    for _ in hashes:
        plain = random.normal(size=numbers.block_bytes // 4).astype(np.float32).tobytes()
        block = bytearray(node.layout.block_bytes)
        ReferenceConverter(plan).convert([[memoryview(plain)]], [memoryview(block)], node.layout.block_tokens)
        blocks.append(bytes(block))
    node.writer.expected = dict(zip(hashes, blocks, strict=True)).__getitem__  # type: ignore[assignment,method-assign]
    await node.writer.compute("numbers", hashes)
    return blocks


@pytest.mark.parametrize(("ending", "reason"), [("release", "UNKNOWN_BLOCK"), ("detach", "WORKER_LOST")])
async def test_a_transfer_follows_the_seals_and_says_how_they_ended(scene: Scene, ending: str, reason: str) -> None:
    near, far = await scene.start(*F32), await scene.start(*F32)
    hashes = names("sealing", 4)
    worker = near.writer.worker
    grant = await worker.begin("s", 4)
    await worker.seal(seal_entry(grant.epoch, hashes[:2]))
    manifest = near.manifest(hashes, sequence_id="s")

    async def brought() -> pull_pb2.BringBlocksResponse:
        async with bringing(far, manifest, hashes, seal_wait_s=20.0) as answer:
            return answer  # type: ignore[no-any-return]

    asking = asyncio.create_task(brought())
    await arrived(far, 2)
    await worker.seal(seal_entry(grant.epoch, hashes[2:3], first_block_index=2))
    await arrived(far, 3)
    if ending == "release":
        await worker.release(("s", grant.epoch))
    else:
        worker.stream.cancel()
    answer = await asking
    assert answer.held_blocks == 3
    assert answer.failure.reason == reason
    assert answer.failure.metadata["block_index"] == "3"
    await far.until_nothing_is_held()


@pytest.mark.parametrize("is_alike", [True, False])
async def test_a_source_killed_in_the_middle_leaves_what_came_whole(scene: Scene, is_alike: bool) -> None:
    near, far = await scene.start(*F32), await scene.start(*(F32 if is_alike else INT8))
    hashes = names("killed", 4)
    worker = near.writer.worker
    grant = await worker.begin("s", 4)
    await worker.seal(seal_entry(grant.epoch, hashes[:2]))
    wanted = hashes if is_alike else names("wanted", 8)

    async def brought() -> pull_pb2.BringBlocksResponse:
        manifest = near.manifest(hashes, sequence_id="s")
        async with bringing(far, manifest, wanted, seal_wait_s=20.0) as answer:
            return answer  # type: ignore[no-any-return]

    asking = asyncio.create_task(brought())
    await arrived(far, len(wanted) // 2)
    near.process.kill()
    answer = await asking
    assert answer.held_blocks == len(wanted) // 2
    assert answer.failure.code == 14, answer.failure
    await far.until_nothing_is_held()
    assert (await far.stats()).tiers[0].sealed_blocks == len(wanted) // 2


async def test_a_caller_that_goes_away_ends_the_transfer(scene: Scene) -> None:
    near, far = await scene.start(*F32), await scene.start(*F32)
    hashes = names("cancelled", 3)
    worker = near.writer.worker
    grant = await worker.begin("s", 3)
    await worker.seal(seal_entry(grant.epoch, hashes[:1]))
    request = pull_pb2.BringBlocksRequest(
        source=near.manifest(hashes, sequence_id="s"), block_hashes=hashes, timeout_s=20, seal_wait_s=20
    )
    call = far.stub.BringBlocks(request, timeout=40)
    await arrived(far, 1)
    call.cancel()
    await far.until_nothing_is_held()
    assert (await near.stats()).tiers[0].referenced_blocks == 1, "its own sequence's"
    await worker.release(("s", grant.epoch))


async def arrived(node: Node, count: int) -> None:
    async with asyncio.timeout(20):
        while (await node.stats()).tiers[0].sealed_blocks < count:
            pass


async def test_many_that_want_the_same_blocks_have_them_come_once(scene: Scene) -> None:
    near, far = await scene.start(*F32), await scene.start(*F32)
    hashes = names("many", 12)
    await near.writer.compute("s", hashes)

    async def brought() -> tuple[int, int]:
        async with bringing(far, near.manifest(hashes), hashes) as answer:
            return answer.held_blocks, answer.transfer_bytes

    answers = await asyncio.gather(*(brought() for _ in range(6)))
    assert {held for held, _ in answers} == {12}
    assert sum(byte_count for _, byte_count in answers) == 12 * far.layout.block_bytes
    await far.until_nothing_is_held()


async def test_without_room_the_first_blocks_come(scene: Scene) -> None:
    near, far = await scene.start(*F32), await scene.start(*F32)
    capacity = (await far.stats()).tiers[0].capacity_blocks
    grant = await far.writer.worker.begin("holder", capacity - 2)
    hashes = names("room", 4)
    await near.writer.compute("s", hashes)
    async with bringing(far, near.manifest(hashes), hashes) as answer:
        assert (answer.held_blocks, answer.failure.reason) == (2, "KV_EXHAUSTED")
    await far.writer.worker.release(("holder", grant.epoch))
    await far.until_nothing_is_held()


REFUSALS: list[tuple[dict[str, Any], dict[str, Any], type[ForebayError], str | None]] = [
    ({"model_digest": "other"}, {}, ModelMismatchError, "source.model_digest"),
    ({"node_id": ""}, {}, InvalidFieldError, "source.node_id"),
    ({"kvcache_address": "nowhere"}, {}, InvalidFieldError, "source.kvcache_address"),
    ({"block_hashes": []}, {}, InvalidFieldError, "source.block_hashes"),
    ({"block_hashes": [b"short"]}, {}, InvalidFieldError, "source.block_hashes"),
    ({"block_hashes": names("others", 3)}, {}, InvalidFieldError, "block_hashes"),
    ({"layout": common_pb2.KvLayout()}, {}, InvalidFieldError, "layout.dtype"),
    ({}, {"block_hashes": []}, InvalidFieldError, "block_hashes"),
    ({}, {"timeout_s": 0.0}, InvalidFieldError, "timeout_s"),
    ({}, {"timeout_s": float("nan")}, InvalidFieldError, "timeout_s"),
    ({}, {"seal_wait_s": -1.0}, InvalidFieldError, "seal_wait_s"),
]


async def test_what_cannot_be_brought_is_refused_before_anything_moves(scene: Scene) -> None:
    near, far = await scene.start(*F32), await scene.start(*INT8)
    hashes = names("refused", 3)

    async def refusal(to: Node, manifest: common_pb2.Manifest, **fields: Any) -> ForebayError:
        with pytest.raises(ForebayError) as refused:
            async with bringing(to, manifest, fields.pop("block_hashes", hashes), **fields):
                pass
        return refused.value

    other = await scene.start(*F32)
    for changes, fields, error, field in REFUSALS:
        refused = await refusal(other, near.manifest(hashes, **changes), **fields)
        assert (type(refused), refused.field) == (error, field), (changes, fields)
    deeper = layout_to_proto(dataclasses.replace(near.layout, layers=3))
    refused = await refusal(far, near.manifest(hashes, layout=deeper))
    assert (type(refused), refused.field) == (LayoutMismatchError, "layout.layers")
    own = await refusal(near, near.manifest(hashes))
    assert (type(own), own.field) == (InvalidFieldError, "source.node_id")
    await far.until_nothing_is_held()


async def begin_for_ever(node: Node) -> None:
    async with asyncio.timeout(20):
        while True:
            grant = await node.writer.worker.begin("again", 1)
            await node.writer.worker.release(("again", grant.epoch))


async def test_a_draining_source_gives_no_more(scene: Scene) -> None:
    near, far = await scene.start(*F32, "--drain-s", "20"), await scene.start(*F32)
    hashes = names("draining", 2)
    await near.writer.compute("s", hashes)
    await near.writer.worker.begin("keeps it draining", 1)
    near.process.process.terminate()
    with pytest.raises(DrainingError):
        await begin_for_ever(near)
    async with bringing(far, near.manifest(hashes), hashes) as answer:
        assert (answer.held_blocks, answer.failure.reason) == (0, "DRAINING")
