"""A KV-cache service is killed with -9 at random moments, its start included: nothing wrong is found, nothing leaks."""

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

import pytest
from xxhash import xxh3_128_digest

from forebay.errors import RemoteError
from forebay.host.shared_memory import segment_name, segment_path
from forebay.kv.tier import Tier
from forebay.rpc.channel import open_channel
from forebay.testing.kvcache_process import KvCacheProcess, WritingWorker, attach_writer
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc

BLOCK_BYTES: Final = 32 * 2 * 2 * 2 * 16 * 4  # of the tiny model in cpu-f32
DEVICE, HOST, DISK = 384, 96, 640
ROUNDS: Final = 30  # every second one has a start that is killed, too
STEMS: Final = 24
STEM_BLOCKS: Final = 12
WRITERS: Final = 3
LONGEST_ROUND_S: Final = 0.4


class MortalService:
    """Services of one node, each started when the one before it has been killed."""

    def __init__(self, model: Path, nats_url: str, disk: Path) -> None:
        self._model, self._nats_url = model, nats_url
        self._arguments = [
            *("--chip-class", "cpu-f32", "--kept-after-uses", "1", "--disk-wait-s", "20"),
            *("--device-bytes", str(DEVICE * BLOCK_BYTES), "--host-bytes", str(HOST * BLOCK_BYTES)),
            *("--disk-dir", str(disk), "--disk-bytes", str((DISK + 2) * (BLOCK_BYTES + 8192))),
        ]
        self.process = self._spawn(None)

    def start(self) -> None:
        """After a kill."""
        self.process = self._spawn(self.process.node_id)

    def _spawn(self, node_id: str | None) -> KvCacheProcess:
        return KvCacheProcess(self._model, self._nats_url, *self._arguments, node_id=node_id)


@pytest.fixture
def service(tiny_model: Path, nats_url: str, tmp_path: Path) -> Iterator[MortalService]:
    mortal = MortalService(tiny_model, nats_url, tmp_path / "disk")
    yield mortal
    mortal.process.clear()


def prompt(stem: int, length: int) -> list[bytes]:
    """A chain's first blocks; of one stem all share their beginning."""
    return [xxh3_128_digest(f"{stem} {index}".encode()) for index in range(length)]


async def test_no_kill_makes_the_cache_wrong_or_leaky(service: MortalService) -> None:
    source, found_count = random.Random(404), 0
    for number in range(ROUNDS):
        if number % 2:
            kill_while_it_starts(service.process, source)
            service.start()
        address = await asyncio.to_thread(service.process.address)
        async with open_channel(address) as channel:
            stub: Any = kvcache_pb2_grpc.KvCacheServiceStub(channel)
            await check_counts(stub)
            found_count += await check_all_that_is_found(stub, number)
            await work_until_killed(stub, service.process, source)
        service.start()
    assert found_count > ROUNDS * DEVICE / 10, "kills left something to be found"


def kill_while_it_starts(process: KvCacheProcess, source: random.Random) -> None:
    """While it takes over what an earlier one left in memory: at some moment after it made its own."""
    tier = source.choice((Tier.DEVICE, Tier.HOST))
    path = segment_path(segment_name(process.node_id, tier.value))
    before = inode(path)
    while inode(path) in (before, None):
        assert process.process.poll() is None, "it did not start"
    for _ in range(source.randrange(1 << source.randrange(8, 20))):  # a moment that nothing marks, rather soon
        pass
    process.kill()


def inode(path: Path) -> int | None:
    with suppress(FileNotFoundError):
        return os.stat(path).st_ino  # noqa: PTH116  # asked ten thousand times
    return None


async def check_counts(stub: Any) -> None:
    """Nothing is in use in a service that has just been started."""
    stats: kvcache_pb2.GetStatsResponse = await stub.GetStats(kvcache_pb2.GetStatsRequest())
    assert stats.active_sequences == stats.attached_workers == stats.pinned_blocks == 0
    for tier in stats.tiers:
        assert tier.free_blocks + tier.leased_blocks + tier.sealed_blocks == tier.capacity_blocks
        assert tier.leased_blocks == tier.referenced_blocks == 0
    assert not stats.HasField("disk_failure")
    index = [one.block_hash async for page in stub.DumpIndex(kvcache_pb2.DumpIndexRequest()) for one in page.entries]
    assert len(index) == len(set(index)) <= sum(tier.sealed_blocks for tier in stats.tiers)


async def check_all_that_is_found(stub: Any, number: int) -> int:
    """Asks for every prompt; returns how many blocks were found, each with the bytes that belong to it."""
    writer = await attach_writer(stub, worker_id=f"checker-{number}")
    index = {one.block_hash async for page in stub.DumpIndex(kvcache_pb2.DumpIndexRequest()) for one in page.entries}
    found_count = 0
    for stem in range(STEMS):
        held = [*takewhile(index.__contains__, prompt(stem, STEM_BLOCKS))]
        if held:
            found_count += await writer.compute(f"check-{number}-{stem}", held)
    writer.worker.stream.cancel()
    return found_count


async def work_until_killed(stub: Any, process: KvCacheProcess, source: random.Random) -> None:
    """Several writers compute and find prompts, in the middle of which the service is killed."""
    writers = [await attach_writer(stub, worker_id=f"writer-{number}") for number in range(WRITERS)]
    work = [asyncio.create_task(compute_for_ever(writer, random.Random(source.random()))) for writer in writers]
    await asyncio.wait(work, timeout=source.uniform(0, LONGEST_ROUND_S), return_when=asyncio.FIRST_COMPLETED)
    process.kill()
    for end in await asyncio.gather(*work, return_exceptions=True):
        assert isinstance(end, RemoteError), end


async def compute_for_ever(writer: WritingWorker, source: random.Random) -> None:
    for number in range(1_000_000):
        hashes = prompt(source.randrange(STEMS * 3) % (STEMS * 2), source.randint(1, STEM_BLOCKS))
        await writer.compute(f"{writer.worker.attachment_id}-{number}", hashes)
