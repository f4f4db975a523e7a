"""SPLIT and LOCAL give the same tokens and log-probabilities, bit for bit, and SPLIT really is one."""

from collections.abc import Iterator
from typing import Literal

import pytest

from forebay.client import Client, Completion, ExecutionMode
from forebay.rpc.channel import open_channel
from forebay.telemetry import spans
from forebay.telemetry.span_store import StoredSpan
from forebay.testing.mesh import RunningMesh, running_mesh
from forebay.testing.prompts import PROMPTS
from forebay.testing.traces import stored_trace
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc


def run(client: Client, prompt: str, mode: Literal["local", "split"], salt: str) -> Completion:
    return client.generate(
        prompt, mode=mode, cache_salt=salt, max_tokens=24, temperature=0, logprobs=5, ignore_eos=True
    )


async def kv_stats(mesh: RunningMesh) -> kvcache_pb2.GetStatsResponse:
    async with open_channel(mesh.address_of("kvcache")) as channel:
        return await kvcache_pb2_grpc.KvCacheServiceStub(channel).GetStats(kvcache_pb2.GetStatsRequest())


async def decode_span(mesh: RunningMesh, trace_id: str) -> StoredSpan:
    trace = await stored_trace(mesh, trace_id, {spans.DECODE})
    return next(one for one in trace if one.name == spans.DECODE)


@pytest.mark.parametrize("number", range(len(PROMPTS)))
def test_split_equals_local(mesh: RunningMesh, client: Client, number: int) -> None:
    split = run(client, PROMPTS[number], "split", f"split-{number}")
    local = run(client, PROMPTS[number], "local", f"local-{number}")
    assert split.plan.mode is ExecutionMode.SPLIT
    assert local.plan.mode is ExecutionMode.LOCAL
    assert split.usage.cached_tokens == local.usage.cached_tokens == 0, "both computed the whole prompt"
    assert split.token_ids == local.token_ids
    assert split.logprobs == local.logprobs
    assert split.text == local.text
    assert len(split.logprobs) == len(split.token_ids) == 24


@pytest.fixture
def fresh_mesh() -> Iterator[RunningMesh]:
    """With room for new blocks: where there is none, taking some moves others to the next tier, which is a copy."""
    with running_mesh() as running:
        yield running


async def test_split_recomputes_and_copies_nothing(fresh_mesh: RunningMesh) -> None:
    mesh = fresh_mesh
    with Client(mesh.router_address) as client:
        await split_copies_nothing(mesh, client)


async def split_copies_nothing(mesh: RunningMesh, client: Client) -> None:
    before = await kv_stats(mesh)
    split = run(client, PROMPTS[-1], "split", "witness")
    after = await kv_stats(mesh)
    assert after.take_overs == before.take_overs + 1
    assert after.tier_copied_bytes == before.tier_copied_bytes
    decode = await decode_span(mesh, split.trace_id)
    assert decode.attributes[spans.COMPUTED_TOKENS] == 0, "the decode worker computed no prompt token"
    assert decode.attributes[spans.TRANSFER_BYTES] == 0
    assert decode.attributes[spans.DECODE_STEPS] == 23, "the first token came from prefill"

    local = run(client, PROMPTS[-1], "local", "counter-witness")
    counted = await decode_span(mesh, local.trace_id)
    assert counted.attributes[spans.COMPUTED_TOKENS] == local.usage.prompt_tokens, "in LOCAL it is all of them"
