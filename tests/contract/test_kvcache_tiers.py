"""The KV-cache service's tiers as clients see them: what moves, what outlives kills and faults, what is asked of it."""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_128_digest

from forebay.errors import DiskFailedError, InvalidFieldError, KvExhaustedError, TenantQuotaError
from forebay.host.shared_memory import index_name, segment_name, segment_path
from forebay.kv.eviction.policies import POLICIES
from forebay.kv.tier import Tier
from forebay.kvcache.checkpoint import RECORD_BYTES
from forebay.rpc.channel import open_channel
from forebay.rpc.status import translated
from forebay.testing.kvcache_process import KvCacheProcess, WritingWorker, attach_writer
from forebay.v1 import common_pb2, kvcache_pb2, kvcache_pb2_grpc, upkeep_pb2
from forebay.wire.tier import tier_to_proto

BLOCK_BYTES = 32 * 2 * 2 * 2 * 16 * 4  # of the tiny model in cpu-f32
DEVICE, HOST, DISK = 6, 4, 40
FEW = [
    *("--chip-class", "cpu-f32", "--kept-after-uses", "1", "--drain-s", "0", "--disk-wait-s", "20"),
    *("--device-bytes", str(DEVICE * BLOCK_BYTES), "--host-bytes", str(HOST * BLOCK_BYTES)),
]


@dataclass
class Running:
    """A service and a worker that writes."""

    process: KvCacheProcess
    stub: Any
    writer: WritingWorker

    async def stats(self) -> kvcache_pb2.GetStatsResponse:
        response: kvcache_pb2.GetStatsResponse = await self.stub.GetStats(kvcache_pb2.GetStatsRequest())
        return response

    async def tier(self, tier: "common_pb2.KvTier") -> kvcache_pb2.TierStats:
        return next(one for one in (await self.stats()).tiers if one.tier == tier)

    async def index(self) -> dict[bytes, "common_pb2.KvTier"]:
        pages = self.stub.DumpIndex(kvcache_pb2.DumpIndexRequest())
        return {one.block_hash: one.tier async for page in pages for one in page.entries}

    async def until(self, condition: Callable[[kvcache_pb2.GetStatsResponse], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition(await self.stats()):
                pass

    async def kill(self) -> None:
        """With -9, once all that is sealed is noted, which takes a moment."""
        tiers = (Tier.DEVICE, Tier.HOST)
        await self.until(
            lambda stats: [one.sealed_blocks for one in stats.tiers[:2]] == list(map(self._noted_count, tiers))
        )
        self.process.kill()

    def _noted_count(self, tier: Tier) -> int:
        """Blocks of a tier of memory that a service which follows this one would find."""
        records = segment_path(index_name(segment_name(self.process.node_id, tier.value))).read_bytes()
        places = range(0, len(records), RECORD_BYTES)
        return sum(any(records[start : start + RECORD_BYTES]) for start in places)


class Scene:
    """Starts services of one node, one after the other."""

    def __init__(self, model: Path, nats_url: str, folder: Path, stack: AsyncExitStack) -> None:
        self.model, self.nats_url, self.folder, self.stack = model, nats_url, folder, stack
        self.node_id: str | None = None

    @property
    def disk(self) -> list[str]:
        size_bytes = (DISK + 2) * (BLOCK_BYTES + 8192)
        return ["--disk-dir", str(self.folder / "disk"), "--disk-bytes", str(size_bytes)]

    async def start(self, *arguments: str) -> Running:
        process = KvCacheProcess(self.model, self.nats_url, *FEW, *arguments, node_id=self.node_id)
        self.stack.callback(process.clear)
        self.node_id = process.node_id
        channel = await self.stack.enter_async_context(open_channel(await asyncio.to_thread(process.address)))
        stub = kvcache_pb2_grpc.KvCacheServiceStub(channel)
        return Running(process, stub, await attach_writer(stub))


@pytest.fixture
async def scene(tiny_model: Path, nats_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        yield Scene(tiny_model, nats_url, tmp_path, stack)


def prompt(number: int, length: int = 2) -> list[bytes]:
    return [xxh3_128_digest(f"{number} {index}".encode()) for index in range(length)]


async def fill(running: Running, count: int) -> None:
    """Computes so many prompts of two blocks, and lets what is demoted be written to disk."""
    for number in range(count):
        await running.writer.compute(f"fill-{number}", prompt(number))
        await running.until(lambda stats: all(not one.leased_blocks for one in stats.tiers))


def damage(scene: Scene, content: bytes, file: Path | None = None) -> None:
    """Turns a bit over in the middle of this block: in the disk file, or another."""
    if file is None:
        (file,) = (scene.folder / "disk").iterdir()
    place = file.read_bytes().index(content) + len(content) // 2
    with file.open("r+b") as damaged:
        damaged.seek(place)
        damaged.write(bytes([content[len(content) // 2] ^ 1]))


async def test_what_no_memory_holds_is_found_on_disk(scene: Scene) -> None:
    running = await scene.start(*scene.disk)
    await fill(running, 10)
    held = await running.index()
    assert len(held) == 20, "nothing was lost: what left DEVICE and HOST lies on disk"
    assert held[prompt(0)[0]] == held[prompt(0)[1]] == common_pb2.KV_TIER_DISK
    assert await running.writer.compute("again", prompt(0)) == 2
    stats = await running.stats()
    assert (stats.disk_read_blocks, stats.disk_corrupt_blocks) == (2, 0)
    assert not stats.HasField("disk_failure")


async def test_a_hint_brings_blocks_into_memory_before_they_are_asked_for(scene: Scene) -> None:
    running = await scene.start(*scene.disk)
    await fill(running, 10)
    hint = upkeep_pb2.PrefetchBlocksRequest(block_hashes=prompt(1))
    assert (await running.stub.PrefetchBlocks(hint)).accepted_blocks == 2
    await running.until(lambda stats: stats.disk_read_blocks == 2)
    assert set(map((await running.index()).get, prompt(1))) == {common_pb2.KV_TIER_HOST}
    assert (await running.stub.PrefetchBlocks(hint)).accepted_blocks == 0


@pytest.mark.parametrize("is_pinned", [False, True])
async def test_a_block_damaged_in_the_host_tier_is_computed_again(scene: Scene, is_pinned: bool) -> None:
    running = await scene.start()
    await fill(running, 5)
    if is_pinned:  # it cannot be dropped, and is passed over
        await running.stub.PinBlocks(upkeep_pb2.PinBlocksRequest(block_hashes=prompt(1), ttl_s=60))
    (name, *_) = [one for one in prompt(1) if (await running.index())[one] == common_pb2.KV_TIER_HOST]
    damage(scene, running.writer.expected(name), segment_path(segment_name(running.process.node_id, Tier.HOST.value)))
    assert await running.writer.compute("again", prompt(1)) == prompt(1).index(name)
    assert await running.writer.compute("and again", prompt(1)) == 2


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.HOST])
async def test_a_block_damaged_before_a_restart_is_not_taken_over(scene: Scene, tier: Tier) -> None:
    running = await scene.start()
    await fill(running, 5)
    before = await running.index()
    name = next(one for one, its_tier in before.items() if its_tier == tier_to_proto(tier))
    await running.kill()
    damage(scene, running.writer.expected(name), segment_path(segment_name(running.process.node_id, tier.value)))
    del before[name]
    assert await (await scene.start()).index() == before


async def test_a_second_service_of_the_node_takes_nothing_from_the_first(scene: Scene) -> None:
    running = await scene.start()
    await fill(running, 5)
    before = await running.index()
    assert {*before.values()} == {common_pb2.KV_TIER_DEVICE, common_pb2.KV_TIER_HOST}
    second = KvCacheProcess(scene.model, scene.nats_url, *FEW, node_id=running.process.node_id)
    code, errors = await asyncio.to_thread(second.finish)
    assert (code, "another KV-cache service of node" in errors) == (2, True)
    await running.kill()
    assert await (await scene.start()).index() == before


async def test_all_tiers_outlive_a_kill(scene: Scene) -> None:
    running = await scene.start(*scene.disk)
    await fill(running, 10)
    await running.writer.worker.begin("open", 3)
    before = await running.index()
    assert {*before.values()} == {common_pb2.KV_TIER_DEVICE, common_pb2.KV_TIER_HOST, common_pb2.KV_TIER_DISK}
    await running.kill()
    again = await scene.start(*scene.disk)
    assert await again.index() == before
    assert (await again.stats()).active_sequences == (await again.stats()).tiers[0].leased_blocks == 0
    for number in range(10):
        index = await again.index()
        held = len([*itertools.takewhile(index.__contains__, prompt(number))])
        assert await again.writer.compute(f"again-{number}", prompt(number)) == held
    assert (await again.stats()).disk_read_blocks > 0


async def test_memory_of_a_killed_service_is_never_written_through_old_mappings(scene: Scene) -> None:
    running = await scene.start()
    await running.writer.compute("one", prompt(1))
    old = running.writer
    open_grant = await old.worker.begin("open", 4)
    await running.kill()
    again = await scene.start()
    for block in open_grant.block_ids:  # a worker in the middle of a step goes on
        start = block * BLOCK_BYTES
        old._memory[start : start + BLOCK_BYTES] = bytes(BLOCK_BYTES)
    assert await again.writer.compute("again", prompt(1)) == 2
    await again.writer.compute("other", prompt(2, length=4))
    assert await again.writer.compute("other-again", prompt(2, length=4)) == 4


async def test_a_service_of_another_arithmetic_takes_nothing_over(scene: Scene) -> None:
    running = await scene.start(*scene.disk)
    await fill(running, 10)
    await running.kill()
    again = await scene.start(*scene.disk, "--chip-class", "cpu-bf16")
    assert await again.index() == {}


async def test_a_graceful_end_leaves_only_the_disk(scene: Scene) -> None:
    running = await scene.start(*scene.disk)
    await fill(running, 10)
    on_disk = {one for one, tier in (await running.index()).items() if tier == common_pb2.KV_TIER_DISK}
    running.process.process.terminate()
    assert running.process.finish()[0] == 0
    assert running.process.segments() == []
    again = await scene.start(*scene.disk)
    assert set(await again.index()) >= on_disk


async def test_a_flipped_bit_is_never_served(scene: Scene) -> None:
    running = await scene.start(*scene.disk)
    await fill(running, 10)
    damage(scene, running.writer.expected(prompt(0)[1]))
    assert await running.writer.compute("again", prompt(0)) == 1, "the block before it is whole"
    stats = await running.stats()
    assert (stats.disk_corrupt_blocks, stats.lost_blocks, stats.evicted_blocks) == (1, 1, 0)
    assert await running.writer.compute("and-again", prompt(0)) == 2


async def test_pins_keep_blocks_and_end_by_themselves(scene: Scene) -> None:
    running = await scene.start()
    await running.writer.compute("one", prompt(1))
    pin = upkeep_pb2.PinBlocksRequest(block_hashes=[*prompt(1), *prompt(7)], ttl_s=1.0)
    assert (await running.stub.PinBlocks(pin)).missing_block_hashes == prompt(7)
    for number in range(20, 30):
        await running.writer.compute(f"other-{number}", prompt(number))
    assert set(map((await running.index()).get, prompt(1))) == {common_pb2.KV_TIER_DEVICE}
    assert (await running.stats()).pinned_blocks == 2
    await running.until(lambda stats: stats.pinned_blocks == 0)
    for number in range(30, 50):
        await running.writer.compute(f"other-{number}", prompt(number))
    assert not set(prompt(1)) & set(await running.index())


async def test_which_pins_are_to_end_must_be_said(scene: Scene) -> None:
    running = await scene.start()
    await running.writer.compute("one", prompt(1))
    await running.stub.PinBlocks(upkeep_pb2.PinBlocksRequest(block_hashes=prompt(1), ttl_s=60))
    for request, field in (
        (upkeep_pb2.UnpinBlocksRequest(), "pins"),
        (upkeep_pb2.UnpinBlocksRequest(all=False), "pins"),
        (upkeep_pb2.UnpinBlocksRequest(named=upkeep_pb2.PinnedBlocks(block_hashes=[b"short"])), "block_hashes"),
    ):
        with pytest.raises(InvalidFieldError) as caught, translated():
            await running.stub.UnpinBlocks(request)
        assert caught.value.field == field
    assert (await running.stats()).pinned_blocks == 2


async def test_pins_leave_room_for_requests(scene: Scene) -> None:
    running = await scene.start()
    for number in (1, 2):
        await running.writer.compute(f"one-{number}", prompt(number))
    request = upkeep_pb2.PinBlocksRequest(block_hashes=[*prompt(1), *prompt(2)], ttl_s=60)
    with pytest.raises(KvExhaustedError), translated():
        await running.stub.PinBlocks(request)
    assert (await running.stats()).pinned_blocks == 0


async def test_verify_reads_the_whole_disk_and_drops_what_is_damaged(scene: Scene) -> None:
    running = await scene.start(*scene.disk)
    await fill(running, 10)
    verify = upkeep_pb2.VerifyBlocksRequest()
    whole = await running.stub.VerifyBlocks(verify)
    assert (whole.verified_blocks, whole.corrupt_blocks) == (
        (await running.tier(common_pb2.KV_TIER_DISK)).sealed_blocks,
        0,
    )
    damage(scene, running.writer.expected(prompt(0)[1]))
    found = await running.stub.VerifyBlocks(verify)
    assert (found.verified_blocks, found.corrupt_blocks) == (whole.verified_blocks, 1)
    assert prompt(0)[1] not in await running.index()
    again = await running.stub.VerifyBlocks(verify)
    assert (again.verified_blocks, again.corrupt_blocks) == (whole.verified_blocks - 1, 0)


async def test_a_disk_that_fails_is_off_and_serving_goes_on(scene: Scene) -> None:
    running = await scene.start(*scene.disk)
    await fill(running, 10)
    (file,) = (scene.folder / "disk").iterdir()
    os.truncate(file, 0)
    for _ in range(2):  # the second finds it off already, and must not call nothing whole
        with pytest.raises(DiskFailedError), translated():
            await running.stub.VerifyBlocks(upkeep_pb2.VerifyBlocksRequest())
    assert common_pb2.KV_TIER_DISK not in (await running.index()).values()
    assert "disk tier is off" in (await running.stats()).disk_failure
    assert await running.writer.compute("again", prompt(0)) == 0
    assert (await running.stub.FlushBlocks(upkeep_pb2.FlushBlocksRequest())).removed_blocks > 0


async def test_verify_without_a_disk_has_nothing_to_read(scene: Scene) -> None:
    running = await scene.start()
    assert (await running.stub.VerifyBlocks(upkeep_pb2.VerifyBlocksRequest())).verified_blocks == 0


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf"), 1e9])
async def test_a_pin_without_an_end_is_refused(scene: Scene, ttl_s: float) -> None:
    running = await scene.start()
    with pytest.raises(InvalidFieldError) as caught, translated():
        await running.stub.PinBlocks(upkeep_pb2.PinBlocksRequest(block_hashes=prompt(1), ttl_s=ttl_s))
    assert caught.value.field == "ttl_s"


async def test_flush_empties_all_tiers_but_what_is_in_use(scene: Scene) -> None:
    running = await scene.start(*scene.disk)
    await fill(running, 10)
    grant = await running.writer.worker.begin("open", 2, prompt(9))
    assert grant.cached_block_count == 2
    assert (await running.stub.FlushBlocks(upkeep_pb2.FlushBlocksRequest())).removed_blocks >= 18
    assert set(await running.index()) == set(prompt(9))
    stats = await running.stats()
    assert sum(one.sealed_blocks for one in stats.tiers) == 2
    assert (stats.flushed_blocks, stats.evicted_blocks, stats.lost_blocks) == (18, 0, 0), (
        "each once, whatever its tiers"
    )


async def test_what_was_flushed_does_not_come_back(scene: Scene) -> None:
    running = await scene.start(*scene.disk)
    await fill(running, 10)
    await running.stub.FlushBlocks(upkeep_pb2.FlushBlocksRequest())
    assert await running.index() == {}
    for number in range(30, 36):
        await running.writer.compute(f"later-{number}", prompt(number))
    await running.until(lambda stats: stats.tiers[2].sealed_blocks > 0 and not stats.tiers[2].leased_blocks)
    before = await running.index()
    await running.kill()
    assert await (await scene.start(*scene.disk)).index() == before


async def test_what_was_used_once_is_not_kept_below(scene: Scene) -> None:
    running = await scene.start("--kept-after-uses", "2")
    for number in range(5):
        await running.writer.compute(f"once-{number}", prompt(number))
    assert (await running.tier(common_pb2.KV_TIER_HOST)).sealed_blocks == 0
    for number in range(5):
        await running.writer.compute(f"twice-{number}", prompt(number))
    for number in range(10, 14):
        await running.writer.compute(f"other-{number}", prompt(number))
    assert (await running.tier(common_pb2.KV_TIER_HOST)).sealed_blocks > 0


@pytest.mark.parametrize(
    ("policy", "of_four_uses", "of_two_uses"), [("reuse-rate", 2, 2), ("lru", 1, 1), ("lfu", 2, 2), ("s3-fifo", 2, 1)]
)
async def test_the_policy_asked_for_chooses_what_leaves(
    scene: Scene, policy: str, of_four_uses: int, of_two_uses: int
) -> None:
    """Prompt 1 is used again and again, then 2, 3 and 4 once, and DEVICE holds three: which one is gone?"""
    running = await scene.start("--kept-after-uses", "100", "--eviction-policy", policy)
    assert (await running.stats()).eviction_policy == policy
    for offset, uses, evicted in ((0, 4, of_four_uses), (10, 2, of_two_uses)):
        await running.stub.FlushBlocks(upkeep_pb2.FlushBlocksRequest())
        for turn, number in enumerate([1] * uses + [2, 3, 4]):
            await running.writer.compute(f"{offset}-{turn}", prompt(offset + number))
        index = await running.index()
        assert [one for one in (1, 2, 3, 4) if prompt(offset + one)[0] not in index] == [evicted]


def test_an_eviction_policy_that_there_is_not_is_refused_with_those_that_there_are(
    tiny_model: Path, nats_url: str
) -> None:
    code, errors = KvCacheProcess(tiny_model, nats_url, "--eviction-policy", "random").finish()
    assert code == 2
    assert all(name in errors for name in ("--eviction-policy", *POLICIES))


async def test_blocks_are_kept_free_ahead_of_requests(scene: Scene) -> None:
    running = await scene.start("--free-blocks", "2")
    for number in range(3):
        await running.writer.compute(f"one-{number}", prompt(number))
    await running.until(lambda stats: stats.tiers[0].free_blocks == 2)
    assert (await running.tier(common_pb2.KV_TIER_HOST)).sealed_blocks == 2, "what made room went down a tier"


def test_no_more_blocks_can_be_kept_free_than_leave_room_for_cache(tiny_model: Path, nats_url: str) -> None:
    service = KvCacheProcess(tiny_model, nats_url, *FEW, "--free-blocks", str(DEVICE))
    code, errors = service.finish()
    assert (code, len(errors.splitlines())) == (2, 1)
    assert f"--free-blocks {DEVICE} leaves no room for cache in the {DEVICE} blocks" in errors
    assert service.segments() == []


async def test_a_tenant_has_no_more_than_its_quota(scene: Scene) -> None:
    running = await scene.start("--tenant-blocks", "3")
    worker = running.writer.worker

    async def begin(sequence_id: str, tenant: str, block_count: int) -> kvcache_pb2.AcquireBlocksResponse:
        new = kvcache_pb2.NewSequence(block_count=block_count, tenant=tenant)
        return await worker.acquire(sequence_id, new_sequence=new)

    first = await begin("one", "greedy", 2)
    with pytest.raises(TenantQuotaError, match="of the 3 that one may have") as caught:
        await begin("two", "greedy", 2)
    assert caught.value.retry_after_s
    assert len((await begin("three", "modest", 2)).block_ids) == 2
    with pytest.raises(TenantQuotaError, match=r"^4 KV blocks are wanted and one tenant may have 3") as caught:
        await begin("four", "long", 4)
    assert caught.value.retry_after_s is None, "waiting does not help"
    assert len((await worker.extend(first.epoch, 2, "one")).block_ids) == 4, "what runs goes on"
    await worker.release(("one", first.epoch))
    assert len((await begin("two", "greedy", 2)).block_ids) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--disk-bytes", "1000000"], "--disk-dir"),
        (["--disk-dir", "/tmp/somewhere"], "--disk-bytes"),
        (["--disk-dir", "/tmp/somewhere", "--disk-bytes", "1000000", "--host-bytes", "0"], "--host-bytes"),
        (["--disk-dir", "/proc/nowhere", "--disk-bytes", "10000000"], "--disk-dir"),
    ],
)
def test_a_disk_that_cannot_be_had_is_refused_in_one_line(
    tiny_model: Path, nats_url: str, arguments: list[str], says: str
) -> None:
    service = KvCacheProcess(tiny_model, nats_url, *FEW, *arguments)
    code, errors = service.finish()
    assert (code, len(errors.splitlines())) == (2, 1)
    assert says in errors
    assert service.segments() == []
