"""The KV-cache service at work on one node: what a hand-over, a request's rights and a promotion cost.

A real service process and a client over gRPC, with the default model's blocks (0.74 MB of 32 tokens). "hand-over" are
the two calls that pass a sequence of 4,096 tokens from a prefill to a decode worker: seal its 128 blocks and hand over,
take over; "rights of 1,024 tokens" the three calls of a request that finds nothing: acquire 32 blocks, seal, release.
Promotion is the service's own copying between its arenas, in this process, beside numpy's copy of as many bytes of
memory that is as cold.

Example:
  scripts/bench kv --rounds 200
"""

import asyncio
import os
import tempfile
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Final

import numpy as np

from forebay.chips.chip_class import DECODE_DEFAULT, chip_class_named
from forebay.chips.kv_layout import layout_for
from forebay.kv.effects import CopyBlock
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena
from forebay.kvcache.mover import BlockMover
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.rpc.channel import open_channel
from forebay.testing.kv_worker import KvWorker, seal_entry
from forebay.testing.kvcache_process import KvCacheProcess, attach_writer
from forebay.testing.nats_server import NatsServer
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report

_HAND_OVER_BLOCKS: Final = 4096 // 32
_REQUEST_BLOCKS: Final = 1024 // 32
_LEAST_REPEATS: Final = 50
_COPIED_BLOCKS: Final = 256


def run(options: Options) -> None:
    """`rounds` of each, at least fifty."""
    model = resolve_model(None)
    block_bytes = layout_for(open_model(model).config, chip_class_named(DECODE_DEFAULT)).block_bytes
    repeats = max(_LEAST_REPEATS, options.rounds)
    figures = asyncio.run(_calls(model, block_bytes, repeats))
    ours, plain = _copies(block_bytes, max(5, options.rounds))
    ratio = median([one / other for one, other in zip(ours, plain, strict=True)])
    figures += [
        Figure("promotion HOST to DEVICE", median(ours), "GB/s"),
        Figure("promotion / memcpy", ratio, "", ">= 0.8", "numpy's copy"),
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
        prefill = (await attach_writer(stub, "prefill")).worker
        decode = (await attach_writer(stub, "decode")).worker
        hand_over_s = [await _hand_over_s(prefill, decode, f"hand-over-{number}") for number in range(repeats)]
        rights_s = [await _rights_s(prefill, f"rights-{number}") for number in range(repeats)]
        copied_bytes = (await stub.GetStats(kvcache_pb2.GetStatsRequest())).tier_copied_bytes
    return [
        Figure("hand-over of 4,096 tokens: seal and take over, p50", 1e3 * median(hand_over_s), "ms", "<= 3"),
        Figure("KV bytes copied by all of them", copied_bytes, "bytes", "<= 0"),
        Figure("rights of 1,024 tokens: acquire, seal, release, p50", 1e3 * median(rights_s), "ms", "<= 2"),
        Figure("calls on its critical path", 3, "", "<= 3"),
    ]


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


def _copies(block_bytes: int, rounds: int) -> tuple[list[float], list[float]]:
    """GB/s of the service's promotion and of a plain copy, in turns."""
    size_bytes = _COPIED_BLOCKS * block_bytes
    ours: list[float] = []
    plain: list[float] = []
    node_id = f"bench-{os.getpid()}"
    with (
        closing(Arena(node_id, Tier.DEVICE, size_bytes, block_bytes)) as device,
        closing(Arena(node_id, Tier.HOST, size_bytes, block_bytes)) as host,
    ):
        mover = BlockMover({Tier.DEVICE: device, Tier.HOST: host}, block_bytes)
        copies = [CopyBlock(Tier.HOST, index, Tier.DEVICE, index) for index in range(_COPIED_BLOCKS)]
        source, target = np.frombuffer(host.view, np.uint8), np.frombuffer(device.view, np.uint8)
        source[:], target[:] = 1, 2
        for _ in range(rounds):
            began_s = time.perf_counter()
            mover.move(copies)
            moved_s = time.perf_counter()
            np.copyto(target, source)
            ours.append(size_bytes / (moved_s - began_s) / 1e9)
            plain.append(size_bytes / (time.perf_counter() - moved_s) / 1e9)
        del source, target
    return ours, plain
