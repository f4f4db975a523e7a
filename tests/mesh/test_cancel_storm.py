"""Two hundred requests, a third of them cancelled at random moments, leave nothing behind."""

import asyncio
import random

from forebay.client import AsyncClient, RequestOptions
from forebay.errors import ForebayError
from forebay.mesh.readiness import health
from forebay.rpc.channel import open_channel
from forebay.testing.mesh import RunningMesh
from forebay.v1 import common_pb2, kvcache_pb2, kvcache_pb2_grpc

REQUESTS = 200
CONCURRENCY = 16


async def test_a_storm_of_cancels_leaks_nothing(mesh: RunningMesh) -> None:
    numbers = random.Random(11)
    doomed = set(numbers.sample(range(REQUESTS), REQUESTS // 3))
    places = asyncio.Semaphore(CONCURRENCY)

    async with AsyncClient(mesh.router_address) as client:

        async def ask(number: int) -> str:
            prompt = [numbers.randrange(1000, 40_000) for _ in range(numbers.choice((3, 31, 32, 33, 150, 400)))]
            async with places:
                options = RequestOptions(max_tokens=numbers.choice((1, 8, 40)), seed=number, tenant="storm")
                if number not in doomed:
                    await client.generate(prompt, **options)
                    return "answered"
                options |= RequestOptions(max_tokens=200, ignore_eos=True)  # long enough to be cut off
                task = asyncio.ensure_future(client.generate(prompt, **options))
                await asyncio.wait([task], timeout=numbers.random())
                task.cancel()
                await asyncio.wait([task])
                if task.cancelled():
                    return "cancelled"
                task.result()
                return "too late"

        results = await asyncio.gather(*(ask(number) for number in range(REQUESTS)), return_exceptions=True)

    refused = [result for result in results if isinstance(result, BaseException)]
    assert not [one for one in refused if not isinstance(one, ForebayError)]
    assert results.count("answered") == REQUESTS - len(doomed), refused
    assert results.count("cancelled") > len(doomed) / 2, refused
    await released(mesh)
    for service in mesh.record.services:
        assert await health(service.role, service.address) == "serving", service.name
        log = (mesh.logs_dir / f"{service.name}.log").read_text()
        assert not [line for line in log.splitlines() if "level=error" in line or "Traceback" in line], service.name


async def released(mesh: RunningMesh) -> None:
    """Within a second of the last request no block is leased."""
    async with open_channel(mesh.address_of("kvcache")) as channel, asyncio.timeout(1.0):
        stub = kvcache_pb2_grpc.KvCacheServiceStub(channel)
        while True:
            stats = await stub.GetStats(kvcache_pb2.GetStatsRequest())
            device = next(tier for tier in stats.tiers if tier.tier == common_pb2.KV_TIER_DEVICE)
            assert device.free_blocks + device.leased_blocks + device.sealed_blocks == device.capacity_blocks
            if device.leased_blocks == device.referenced_blocks == stats.active_sequences == 0:
                return
            await asyncio.sleep(0.02)
