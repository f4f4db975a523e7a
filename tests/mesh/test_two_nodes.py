"""SPLIT across two nodes: equal to LOCAL when both keep KV alike, near to it where KV is converted, and never stuck."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from forebay.client import Client, Completion, ExecutionMode
from forebay.errors import ForebayError
from forebay.rpc.channel import open_channel
from forebay.telemetry import spans
from forebay.telemetry.span_store import StoredSpan
from forebay.testing.prompts import SHORT_PROMPTS
from forebay.testing.traces import stored_trace
from forebay.testing.two_nodes import TwoNodes, two_nodes
from forebay.testing.waiting import eventually
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc

BLOCK_NUMBERS = 32 * 30 * 2 * 3 * 64  # of the default model in blocks of 32 tokens
OUTPUT_TOKENS = 12
INT8_LOGPROB_BOUND = 0.3
"""As docs/adr/014 and 016 state: the largest difference of a chosen token's log-probability."""
RANKS_LOGPROB_BOUND = 1e-4
"""As docs/adr/018 states."""
PRECISE = {"WORKER_LOST", "NO_WORKER"}
"""With what a request may end whose prefill worker has lost its KV-cache service."""
PROMPTS = (
    SHORT_PROMPTS[-2] * 2 + SHORT_PROMPTS[-1],
    SHORT_PROMPTS[-1] + " " + SHORT_PROMPTS[-2],
    "List ten rivers and where each of them ends. " * 9,
)


LIKE, INT8 = ("cpu-f32", "cpu-f32"), ("cpu-f32", "cpu-f32-kv8")
RANKS, BF16_INT8 = ("cpu-f32", "cpu-f32-tp3"), ("cpu-bf16", "cpu-f32-kv8")
CHIP_CLASSES = [LIKE, INT8, RANKS, BF16_INT8]
"""Of prefill and decode: float32 in blocks of 32 as it is, as INT8 in blocks of 16, among 3 ranks; bfloat16 as INT8."""


@pytest.fixture(scope="module", params=[LIKE, INT8], ids="-to-".join)
def fleet(request: pytest.FixtureRequest) -> Iterator[TwoNodes]:
    with two_nodes(*request.param) as running:
        yield running


def chip_classes(fleet: TwoNodes) -> tuple[str, str]:
    prefill, decode = (
        command[command.index("--chip-class") + 1]
        for command in (fleet.services[name].command for name in ("prefill", "decode"))
    )
    return prefill, decode


@pytest.fixture
def client(fleet: TwoNodes) -> Iterator[Client]:
    with Client(fleet.router_address) as connected:
        yield connected


async def token_ids(fleet: TwoNodes, text: str) -> list[int]:
    async with open_channel(fleet.address_of("tokenizer")) as channel:
        request = tokenizer_pb2.EncodeRequest(input=tokenizer_pb2.EncodeInput(text=text))
        return list((await tokenizer_pb2_grpc.TokenizerServiceStub(channel).Encode(request)).token_ids)


async def stats(fleet: TwoNodes, name: str) -> kvcache_pb2.GetStatsResponse:
    async with open_channel(fleet.address_of(name)) as channel:
        return await kvcache_pb2_grpc.KvCacheServiceStub(channel).GetStats(kvcache_pb2.GetStatsRequest())


async def nothing_is_held(fleet: TwoNodes, *names: str) -> None:
    async def is_free() -> bool:
        answers = await asyncio.gather(*(stats(fleet, name) for name in names))
        tiers = [tier for answer in answers for tier in answer.tiers]
        return not any(tier.leased_blocks or tier.referenced_blocks for tier in tiers)

    await eventually(is_free)


def named(trace: list[StoredSpan], name: str) -> list[StoredSpan]:
    return [one for one in trace if one.name == name]


def split(client: Client, prompt: list[int], salt: str) -> Completion:
    done = client.generate(
        prompt, mode="split", cache_salt=salt, max_tokens=OUTPUT_TOKENS, temperature=0, logprobs=5, ignore_eos=True
    )
    assert done.plan.mode is ExecutionMode.SPLIT
    assert "its KV is brought" in done.plan.reason
    return done


@pytest.mark.parametrize("fleet", CHIP_CLASSES, indirect=True, ids="-to-".join)
@pytest.mark.parametrize("number", range(len(PROMPTS)))
async def test_what_was_prefilled_on_another_node_goes_on_here(fleet: TwoNodes, client: Client, number: int) -> None:
    prompt = await token_ids(fleet, PROMPTS[number])
    assert 64 < len(prompt) <= 200
    answer = await asyncio.to_thread(split, client, prompt, f"split-{number}")
    full_blocks = len(prompt) // 32
    assert answer.usage.cached_tokens == 0, "the prefill worker computed the whole prompt"
    trace = await stored_trace(fleet, answer.trace_id, {spans.GENERATE, spans.DECODE, spans.PREFILL})
    (root,), (prefill,), (decode,) = (named(trace, name) for name in (spans.GENERATE, spans.PREFILL, spans.DECODE))
    early, late = sorted(named(trace, spans.KV_TRANSFER), key=lambda one: one.start_ns)
    assert (early.parent_span_id, late.parent_span_id) == (root.span_id, decode.span_id)
    assert prefill.start_ns < early.start_ns < prefill.end_ns, "it begins while the prompt is being computed"
    came_early, came_late = (one.attributes[spans.TRANSFER_BYTES] for one in (early, late))
    dtype, size_bytes = ("bfloat16", 2) if chip_classes(fleet) == BF16_INT8 else ("float32", 4)
    assert came_early + came_late == full_blocks * BLOCK_NUMBERS * size_bytes
    assert came_early > 0
    assert early.attributes[spans.TRANSFER_RATE] > 0
    assert early.attributes[spans.KV_FROM_LAYOUT] == f"{dtype} x 32 tokens, layer_kv_head_token"
    assert (
        early.attributes[spans.KV_TO_LAYOUT]
        == {
            LIKE: "float32 x 32 tokens, layer_kv_head_token",
            RANKS: "float32 x 32 tokens, layer_kv_head_token, 3 ranks",
            INT8: "int8 x 16 tokens, layer_kv_head_token",
            BF16_INT8: "int8 x 16 tokens, layer_kv_head_token",
        }[chip_classes(fleet)]
    )
    assert (early.attributes[spans.KV_FROM_TIER], early.attributes[spans.KV_TO_TIER]) == ("remote", "device")
    assert decode.attributes[spans.CACHED_TOKENS] == full_blocks * 32
    assert decode.attributes[spans.COMPUTED_TOKENS] == len(prompt) % 32
    assert decode.attributes[spans.TRANSFER_BYTES] == came_late
    await nothing_is_held(fleet, "kvcache-a", "kvcache-b")


@pytest.mark.parametrize("fleet", CHIP_CLASSES, indirect=True, ids="-to-".join)
@pytest.mark.parametrize("number", range(len(PROMPTS)))
async def test_the_answer_is_that_of_local(fleet: TwoNodes, client: Client, number: int) -> None:
    prompt = await token_ids(fleet, PROMPTS[number])
    answer = await asyncio.to_thread(split, client, prompt, f"same-{number}")
    if chip_classes(fleet) in (LIKE, RANKS):
        local = await asyncio.to_thread(
            lambda: client.generate(
                prompt, mode="local", cache_salt="local", max_tokens=OUTPUT_TOKENS, temperature=0, logprobs=5,
                ignore_eos=True,
            )
        )  # fmt: skip
        assert local.plan.mode is ExecutionMode.LOCAL
        assert local.usage.cached_tokens == 0
        assert answer.token_ids == local.token_ids
        if chip_classes(fleet) == LIKE:
            assert answer.logprobs == local.logprobs
            return
        # No bit is changed on the way, but three ranks add up otherwise than the one that prefilled.
        pairs = zip(answer.logprobs or (), local.logprobs or (), strict=True)
        assert max(abs(ours.chosen.logprob - theirs.chosen.logprob) for ours, theirs in pairs) <= RANKS_LOGPROB_BOUND
        return
    differences = await asyncio.to_thread(forced_differences, client, prompt, answer)
    assert 0 < max(differences) <= INT8_LOGPROB_BOUND


def forced_differences(client: Client, prompt: list[int], answer: Completion) -> list[float]:
    """How far LOCAL's log-probability of each token of an answer is from the answer's own, after the same tokens.

    The first token is left out: the prefill worker chose it before anything was converted.
    """
    assert answer.logprobs is not None
    differences = []
    for index in range(1, len(answer.token_ids)):
        forced = client.generate(
            [*prompt, *answer.token_ids[:index]], mode="local", cache_salt="forced", max_tokens=1, temperature=0,
            logprobs=20, ignore_eos=True,
        )  # fmt: skip
        assert forced.logprobs is not None
        known = {one.token_id: one.logprob for one in forced.logprobs[0].alternatives}
        chosen = answer.logprobs[index].chosen
        differences.append(abs(known[chosen.token_id] - chosen.logprob))
    return differences


async def test_a_prefix_that_came_once_is_cache(fleet: TwoNodes, client: Client) -> None:
    prompt = await token_ids(fleet, PROMPTS[0])
    first = await asyncio.to_thread(split, client, prompt, "once")
    again = await asyncio.to_thread(
        lambda: client.generate(
            prompt, cache_salt="once", max_tokens=OUTPUT_TOKENS, temperature=0, logprobs=5, ignore_eos=True
        )
    )
    assert again.plan.mode is ExecutionMode.RESUME
    assert again.usage.cached_tokens > 0
    assert again.token_ids[1:] == first.token_ids[1:] or chip_classes(fleet) != LIKE
    await nothing_is_held(fleet, "kvcache-a", "kvcache-b")


async def test_requests_cancelled_at_any_moment_leave_nothing(fleet: TwoNodes, client: Client) -> None:
    prompt = await token_ids(fleet, PROMPTS[1])

    async def cancelled(number: int) -> None:
        with pytest.raises(ForebayError):
            await asyncio.to_thread(
                lambda: client.generate(
                    prompt, mode="split", cache_salt=f"cancel-{number}", max_tokens=200, ignore_eos=True,
                    timeout_s=0.05 + 0.06 * number,
                )
            )  # fmt: skip

    await asyncio.gather(*map(cancelled, range(8)))
    await nothing_is_held(fleet, "kvcache-a", "kvcache-b")


@pytest.fixture
def doomed_fleet() -> Iterator[TwoNodes]:
    with two_nodes("cpu-f32", "cpu-f32") as running:
        yield running


async def test_a_source_killed_under_load_fails_nobody_without_a_word(doomed_fleet: TwoNodes) -> None:
    fleet = doomed_fleet
    prompt = await token_ids(fleet, PROMPTS[1])
    with Client(fleet.router_address) as client:
        asked = [
            asyncio.create_task(asyncio.to_thread(outcome, client, [number, *prompt], f"kill-{number}"))
            for number in range(6)
        ]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        os.kill(fleet.pid_of("kvcache-a"), signal.SIGKILL)
        outcomes = await asyncio.gather(*asked)
    assert all(isinstance(one, Completion) or one.reason in PRECISE for one in outcomes), outcomes
    assert any(isinstance(one, Completion) for one in outcomes)
    await nothing_is_held(fleet, "kvcache-b")


def outcome(client: Client, prompt: list[int], salt: str) -> Completion | ForebayError:
    try:
        return client.generate(
            prompt, mode="split", cache_salt=salt, max_tokens=40, temperature=0, ignore_eos=True, timeout_s=60
        )
    except ForebayError as error:
        return error
