"""A router tells the node that computes a prompt what of its prefix lies on disk, before the worker asks for it."""

import asyncio
from typing import Any

import pytest

from forebay.kv.hashing import block_hashes, root_hash
from forebay.kv.tier import Tier
from forebay.role import Role
from forebay.router.prefetch_hints import MOST_UNANSWERED, PrefetchHints
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import DIGEST, LAYOUT
from forebay.testing.waiting import until
from forebay.v1 import kvcache_pb2_grpc, router_pb2, upkeep_pb2

TEXT = "abcdefghijklmn"  # of which three blocks are full
HASHES = block_hashes(root_hash(DIGEST, "", ""), [ord(one) for one in TEXT[:12]], LAYOUT.block_tokens)


class HeardHints(kvcache_pb2_grpc.KvCacheServiceServicer):
    """A KV-cache service that keeps the hints it gets, and does not answer while it is told to be slow."""

    def __init__(self) -> None:
        self.hints: list[list[bytes]] = []
        self.answers = asyncio.Event()

    async def PrefetchBlocks(
        self, request: upkeep_pb2.PrefetchBlocksRequest, context: object
    ) -> upkeep_pb2.PrefetchBlocksResponse:
        self.hints.append(list(request.block_hashes))
        await self.answers.wait()
        return upkeep_pb2.PrefetchBlocksResponse()


async def answer(router: Any, text: str = TEXT) -> str:
    call = router.stub.Generate(router_pb2.GenerateRequest(text=text), timeout=20)
    return "".join([event.chunk.text async for event in call])


@pytest.mark.parametrize(
    ("tiers", "hinted_count"),
    [
        ((Tier.DISK, Tier.DISK, Tier.DISK), 3),
        ((Tier.DEVICE, Tier.DISK, None), 2),
        ((None, Tier.DISK, Tier.DISK), 0),
        ((Tier.DEVICE, Tier.HOST, None), 0),
    ],
)
async def test_what_lies_on_disk_is_asked_for_and_nobody_waits_for_it(
    router_for: Any, tiers: tuple[Tier | None, ...], hinted_count: int
) -> None:
    service = HeardHints()
    async with ScriptedFleet() as fleet:
        await fleet.add(Role.KVCACHE, "kvcache-1", service)
        async with router_for(fleet) as router:
            for tier, block_hash in zip(tiers, HASHES, strict=True):
                if tier is not None:
                    router.index.store("node", tier, [block_hash])
            assert await answer(router) == "hello"
            if hinted_count:
                await until(lambda: service.hints)
            assert service.hints == ([HASHES[:hinted_count]] if hinted_count else [])
            service.answers.set()


async def test_a_service_that_cannot_be_reached_harms_nothing(router_for: Any) -> None:
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        router.index.store("node", Tier.DISK, HASHES)
        assert await answer(router) == "hello"


async def test_a_service_that_does_not_answer_is_not_told_for_ever(router_for: Any) -> None:
    service = HeardHints()
    async with ScriptedFleet() as fleet:
        await fleet.add(Role.KVCACHE, "kvcache-1", service)
        async with router_for(fleet) as router:
            hints = PrefetchHints(router.links.kvcache)
            for _ in range(2 * MOST_UNANSWERED):
                hints.send("node", HASHES)
            await until(lambda: len(service.hints) == MOST_UNANSWERED)
            await hints.close()
            hints.send("node", HASHES)
            await until(lambda: len(service.hints) == MOST_UNANSWERED + 1)
            service.answers.set()
            await hints.close()
