"""A decode worker whose sequence was prefilled on another node: its blocks are brought, the rest is computed."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from forebay.decode.servicer import DecodeServicer
from forebay.testing.attached_worker import MODEL, attached_worker, served
from forebay.testing.decode_rig import PROMPT, Link, Rig
from forebay.testing.fake_engine import LAYOUT, continuation
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, decode_pb2_grpc

Start = Callable[..., Any]

FULL_BLOCKS = len(PROMPT) // LAYOUT.block_tokens


@asynccontextmanager
async def two_nodes(start_kvcache: Start, far_blocks: int = 64) -> AsyncIterator[tuple[Rig, Rig]]:
    """The source's rig, which only prefills, and the rig of a decode worker on a node of its own."""
    async with (
        start_kvcache() as near,
        start_kvcache(blocks=far_blocks) as far,
        attached_worker(far.address) as worker,
    ):
        servicer = DecodeServicer(worker.runner, MODEL, far.node_id)
        register = decode_pb2_grpc.add_DecodeServiceServicer_to_server
        async with served(register, servicer, "forebay.v1.DecodeService") as channel:
            stub = decode_pb2_grpc.DecodeServiceStub(channel)
            link = Link(stub.Decode())
            yield Rig(near, worker, stub, link), Rig(far, worker, stub, link)
            link.call.cancel()


async def test_blocks_of_another_node_are_found_as_cache(start_kvcache: Start) -> None:
    async with two_nodes(start_kvcache) as (near, far):
        heard = await far.link.generate(**await near.offer())
        assert heard.tokens == continuation(PROMPT, 10)[1:]
        summary = heard.last.summary
        assert summary.cached_tokens == FULL_BLOCKS * LAYOUT.block_tokens
        assert summary.computed_prompt_tokens == len(PROMPT) - summary.cached_tokens
        assert summary.transfer_bytes == FULL_BLOCKS * LAYOUT.block_bytes
        assert summary.transfer_s > 0
        for kvcache in (near.kvcache, far.kvcache):
            await until(kvcache.is_all_released)
            await until(lambda kvcache=kvcache: kvcache.stats().tiers[0].referenced == 0)


async def test_what_is_here_already_does_not_come_again(start_kvcache: Start) -> None:
    async with two_nodes(start_kvcache) as (near, far):
        await far.link.generate(**await near.offer())
        again = await far.link.generate("r2", **await near.offer("r2"))
        assert again.tokens == continuation(PROMPT, 10)[1:]
        assert again.last.summary.transfer_bytes == 0
        assert again.last.summary.cached_tokens == FULL_BLOCKS * LAYOUT.block_tokens


@pytest.mark.parametrize("fault", ["unreachable", "unknown blocks", "no address"])
async def test_what_does_not_come_is_computed(start_kvcache: Start, free_address: str, fault: str) -> None:
    async with two_nodes(start_kvcache) as (near, far):
        offer = await near.offer()
        manifest = offer["manifest"]
        match fault:
            case "unreachable":
                manifest.kvcache_address = free_address
            case "unknown blocks":
                await until(near.kvcache.is_all_released)
                await near.kvcache.node.flush()
            case "no address":
                manifest.kvcache_address = ""
        heard = await far.link.generate(**offer)
        assert heard.tokens == continuation(PROMPT, 10)[1:]
        assert heard.last.summary.computed_prompt_tokens == len(PROMPT)
        assert heard.last.summary.transfer_bytes == 0
        await until(far.kvcache.is_all_released)


async def test_without_room_for_all_the_first_blocks_come(start_kvcache: Start) -> None:
    async with two_nodes(start_kvcache, far_blocks=4) as (near, far):
        heard = await far.link.generate(**await near.offer(sampling=common_pb2.SamplingParams(max_tokens=2)))
        assert heard.last.error.reason == "KV_EXHAUSTED", "the node cannot hold the sequence"
        await until(far.kvcache.is_all_released)
        await until(lambda: far.kvcache.stats().tiers[0].referenced == 0)


async def test_a_cancel_while_blocks_come_leaves_nothing(start_kvcache: Start) -> None:
    async with two_nodes(start_kvcache) as (near, far):
        for number in range(8):
            offer = await near.offer(f"r{number}", [*PROMPT[:4], number, *PROMPT])
            await far.link.start(f"r{number}", **offer)
            await far.link.cancel(f"r{number}")
            await far.link.end_of(f"r{number}")
            await until(far.kvcache.is_all_released)
            await until(lambda: far.kvcache.stats().tiers[0].referenced == 0)
        await until(near.kvcache.is_all_released)
        await until(lambda: near.kvcache.stats().tiers[0].referenced == 0)
