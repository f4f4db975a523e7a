"""The KV-cache service at work on one node: what a hand-over, a request's rights and a promotion cost.

A real service process and a client over gRPC, with the default model's blocks (0.74 MB of 32 tokens). "hand-over" are
the two calls that pass a sequence of 4,096 tokens from a prefill to a decode worker: seal its 128 blocks and hand over,
take over; "rights of 1,024 tokens" the three calls of a request that finds nothing: acquire 32 blocks, seal, release.
Promotion is the service's own copying between its arenas and comparing of digests, in this process, beside numpy's copy
of as many bytes of memory that is as cold.

Example:
  scripts/bench kv --rounds 200
"""

import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from forebay.kv.effects import CopyBlock
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena
from forebay.kvcache.digests import BlockDigests
from forebay.kvcache.mover import BlockMover
from forebay.models.default_model import resolve_model
from forebay.rpc.channel import open_channel
from forebay.testing.kv_worker import KvWorker, seal_entry
from forebay.testing.kvcache_process import KvCacheProcess, attach_writer
from forebay.testing.nats_server import NatsServer
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc
from scripts.benchmarks.kv_blocks import served_layout
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report

_HAND_OVER_BLOCKS: Final = 4096 // 32
_REQUEST_BLOCKS: Final = 1024 // 32
_LEAST_REPEATS: Final = 50
_COPIED_BLOCKS: Final = 256


def run(options: Options) -> None:
    """`rounds` of each, at least fifty."""
    model = resolve_model(None)
    block_bytes = served_layout(model).block_bytes
    repeats = max(_LEAST_REPEATS, options.rounds)
    figures = asyncio.run(_calls(model, block_bytes, repeats))
    rounds = [_promotion(block_bytes) for _ in range(max(5, options.rounds))]
    ratio = median([one.plain_s / one.promoted_s for one in rounds])
    copying = median([one.plain_s / one.copied_s for one in rounds])
    figures += [
        Figure("promotion HOST to DEVICE", median([one.gb_per_s for one in rounds]), "GB/s"),
        Figure("promotion / memcpy", ratio, "", ">= 0.8", "numpy's copy"),
        Figure("its copying alone / memcpy", copying, "", None, "numpy's copy"),
    ]
    report("kv", figures)


async def _calls(model: Path, block_bytes: int, repeats: int) -> list[Figure]:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-bench-")))
        nats = NatsServer(folder)
        stack.callback(nats.stop)
        size = str(4 * _HAND_OVER_BLOCKS * block_bytes)
        service = KvCacheProcess(model, nats.url, "--device-bytes", size, "--host-bytes", "0")
        stack.callback(service.clear)
        channel = await stack.enter_async_context(open_channel(await asyncio.to_thread(service.address)))
        stub: kvcache_pb2_grpc.KvCacheServiceAsyncStub = kvcache_pb2_grpc.KvCacheServiceStub(channel)
        counted = _CountedStub(stub)
        prefill = (await attach_writer(cast("kvcache_pb2_grpc.KvCacheServiceAsyncStub", counted), "prefill")).worker
        decode = (await attach_writer(stub, "decode")).worker
        hand_over_s = [await _hand_over_s(prefill, decode, f"hand-over-{number}") for number in range(repeats)]
        counted.call_count = 0
        rights_s = [await _rights_s(prefill, f"rights-{number}") for number in range(repeats)]
        copied_bytes = (await stub.GetStats(kvcache_pb2.GetStatsRequest())).tier_copied_bytes
    return [
        Figure("hand-over of 4,096 tokens: seal and take over, p50", 1e3 * median(hand_over_s), "ms", "<= 3"),
        Figure("KV bytes copied by all of them", copied_bytes, "bytes", "<= 0"),
        Figure("rights of 1,024 tokens: acquire, seal, release, p50", 1e3 * median(rights_s), "ms", "<= 2"),
        Figure("calls of each of them", counted.call_count / repeats, "", "<= 3"),
    ]


class _CountedStub:
    """A stub that counts the calls made through it."""

    def __init__(self, stub: "kvcache_pb2_grpc.KvCacheServiceAsyncStub") -> None:
        self._stub = stub
        self.call_count = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.call_count += 1
            return getattr(self._stub, name)(*arguments, **options)

        return call


async def _hand_over_s(prefill: KvWorker, decode: KvWorker, name: str) -> float:
    grant = await prefill.begin(name, _HAND_OVER_BLOCKS)
    hashes = [os.urandom(16) for _ in range(_HAND_OVER_BLOCKS)]
    began_s = time.perf_counter()
    (sealed,) = await prefill.seal(seal_entry(grant.epoch, hashes, sequence_id=name, hand_over=True))
    taken = await decode.take_over(sealed.epoch, sequence_id=name)
    seconds = time.perf_counter() - began_s
    assert list(taken.block_ids) == list(grant.block_ids)
    await decode.release((name, taken.epoch))
    return seconds


async def _rights_s(worker: KvWorker, name: str) -> float:
    hashes = [os.urandom(16) for _ in range(_REQUEST_BLOCKS)]
    began_s = time.perf_counter()
    grant = await worker.begin(name, _REQUEST_BLOCKS, hashes[:-1])
    await worker.seal(seal_entry(grant.epoch, hashes, sequence_id=name))
    await worker.release((name, grant.epoch))
    return time.perf_counter() - began_s


@dataclass(frozen=True, slots=True)
class _Promotion:
    """Seconds that it took to bring so many bytes up, to copy them as that does, and to copy them plainly."""

    size_bytes: int
    promoted_s: float
    copied_s: float
    plain_s: float

    @property
    def gb_per_s(self) -> float:
        return self.size_bytes / self.promoted_s / 1e9


def _promotion(block_bytes: int) -> _Promotion:
    size_bytes = _COPIED_BLOCKS * block_bytes
    node_id = f"bench-{os.getpid()}"
    with (
        closing(Arena(node_id, Tier.DEVICE, size_bytes, block_bytes)) as device,
        closing(Arena(node_id, Tier.HOST, size_bytes, block_bytes)) as host,
    ):
        mover = BlockMover({Tier.DEVICE: device, Tier.HOST: host}, block_bytes)
        digests = BlockDigests(mover.read)
        copies = [CopyBlock(Tier.HOST, index, Tier.DEVICE, index) for index in range(_COPIED_BLOCKS)]
        source, target = np.frombuffer(host.view, np.uint8), np.frombuffer(device.view, np.uint8)
        source[:], target[:] = 1, 2
        for index in range(_COPIED_BLOCKS):
            digests.of(Tier.HOST, index)
        are_whole: list[bool] = []
        promoted_s = _seconds(lambda: mover.move(copies, lambda copy: are_whole.append(digests.copied(copy))))
        assert are_whole == [True] * _COPIED_BLOCKS
        copied_s = _seconds(lambda: mover.move(copies))
        plain_s = _seconds(partial(np.copyto, target, source))
        del source, target  # they hold the arenas' memory
    return _Promotion(size_bytes, promoted_s, copied_s, plain_s)


def _seconds(act: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    act()
    return time.perf_counter() - began_s
