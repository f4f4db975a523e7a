"""Three tiers on one small mesh: few places, little KV memory. Real processes, real model."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import pytest

from forebay.client import AsyncClient, Completion
from forebay.client.kv_operator import KvOperator
from forebay.errors import QueueFullError
from forebay.telemetry import spans
from forebay.testing.mesh import RunningMesh, running_mesh
from forebay.testing.traces import stored_trace
from forebay.testing.waiting import eventually

BLOCK_BYTES = 737_280 + 64  # of the default model
BATCH_PROMPT, BATCH_OUTPUT = 600, 160  # 24 blocks
CHAT_PROMPT = 300


@pytest.fixture(scope="module")
def small_mesh() -> Iterator[RunningMesh]:
    """Room for two BATCH jobs' blocks in DEVICE, for more in HOST; four places, one of which is REALTIME's."""
    with running_mesh(
        device_bytes=48 * BLOCK_BYTES,
        host_bytes=120 * BLOCK_BYTES,
        extra_arguments={"decode": ("--max-sequences", "4"), "router": ("--queue-length", "8")},
    ) as running:
        yield running


def prompt_of(numbers: random.Random, tokens: int) -> list[int]:
    return [numbers.randrange(1_000, 40_000) for _ in range(tokens)]


async def ask(client: AsyncClient, prompt: list[int], tier: Any, max_tokens: int) -> Completion:
    return await client.generate(
        prompt, max_tokens=max_tokens, temperature=0, ignore_eos=True, qos_tier=tier, timeout_s=120
    )


async def is_all_released(mesh: RunningMesh) -> bool:
    async with KvOperator(mesh.address_of("kvcache")) as operator:
        return all(tier.leased_blocks + tier.referenced_blocks == 0 for tier in (await operator.stats()).tiers)


async def is_device_in_use(mesh: RunningMesh, blocks: int) -> bool:
    async with KvOperator(mesh.address_of("kvcache")) as operator:
        device = (await operator.stats()).tiers[0]
        return device.leased_blocks + device.referenced_blocks >= blocks


async def test_batch_gives_way_to_chats_and_all_say_what_they_say_undisturbed(small_mesh: RunningMesh) -> None:
    numbers = random.Random(3)
    jobs = [prompt_of(numbers, BATCH_PROMPT) for _ in range(5)]
    chats = [prompt_of(numbers, CHAT_PROMPT) for _ in range(6)]
    async with AsyncClient(small_mesh.router_address) as client:
        alone = [(await ask(client, prompt, "realtime", BATCH_OUTPUT)).token_ids for prompt in jobs]
        alone += [(await ask(client, prompt, "realtime", 20)).token_ids for prompt in chats]
        batch = [asyncio.create_task(ask(client, prompt, "batch", BATCH_OUTPUT)) for prompt in jobs]
        await eventually(lambda: is_device_in_use(small_mesh, 44))
        together = [(await ask(client, prompt, "realtime", 20)).token_ids for prompt in chats]
        done = await asyncio.gather(*batch)
    assert [one.token_ids for one in done] + together == alone
    traces = [await stored_trace(small_mesh, one.trace_id, {spans.GENERATE, spans.DECODE}) for one in done]
    decodes = [one for trace in traces for one in trace if one.name == spans.DECODE]
    assert sum(int(one.attributes[spans.PARKS]) for one in decodes) > 0, "none was parked"
    assert any(one.name == spans.ADMIT for trace in traces for one in trace), "none had to wait"
    await eventually(lambda: is_all_released(small_mesh))


async def test_a_backup_request_is_answered_alone_while_others_wait(small_mesh: RunningMesh) -> None:
    numbers = random.Random(4)
    async with AsyncClient(small_mesh.router_address) as client:
        answers = await asyncio.gather(
            *(ask(client, prompt_of(numbers, 40), tier, 20) for tier in ("realtime", "backup", "batch", "backup"))
        )
    assert all(one.usage.completion_tokens == 20 for one in answers)
    assert {one.plan.mode for one in answers[1::2]} == {"local"}
    await eventually(lambda: is_all_released(small_mesh))


async def test_too_many_are_turned_away_batch_first_and_the_others_answered(small_mesh: RunningMesh) -> None:
    numbers = random.Random(5)
    async with AsyncClient(small_mesh.router_address) as client:
        batch = [asyncio.create_task(ask(client, prompt_of(numbers, 200), "batch", 60)) for _ in range(20)]
        await asyncio.sleep(0.2)
        chats = await asyncio.gather(*(ask(client, prompt_of(numbers, 40), "realtime", 10) for _ in range(8)))
        results = await asyncio.gather(*batch, return_exceptions=True)
    assert len(chats) == 8
    refused = [one for one in results if isinstance(one, BaseException)]
    assert refused
    assert all(isinstance(one, QueueFullError) and one.retry_after_s for one in refused), refused
    assert len(refused) < len(results)
    await eventually(lambda: is_all_released(small_mesh))
