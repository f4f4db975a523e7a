"""What a router streams for good requests: modes, tokens, text, stop strings, counts and times."""

import asyncio

import pytest

from forebay.errors import KvExhaustedError
from forebay.kv.hashing import block_hashes, root_hash
from forebay.kv.tier import Tier
from forebay.role import Role
from forebay.rpc.status import translated
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import DIGEST, LAYOUT, FakeTokenizer, Script
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, router_pb2, tokenizer_pb2

SPLIT, LOCAL = common_pb2.EXECUTION_MODE_SPLIT, common_pb2.EXECUTION_MODE_LOCAL


class Answer:
    """A whole stream, taken apart."""

    def __init__(self, responses: list[router_pb2.GenerateResponse]) -> None:
        assert [r.WhichOneof("event") for r in responses[:1]] == ["started"]
        assert [r.WhichOneof("event") for r in responses[-1:]] == ["finished"]
        self.started = responses[0].started
        self.finished = responses[-1].finished
        self.chunks = [response.chunk for response in responses[1:-1]]
        assert all(response.WhichOneof("event") == "chunk" for response in responses[1:-1])

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_text(self) -> str:
        return "".join(chr(token_id) for chunk in self.chunks for token_id in chunk.token_ids)


async def ask(router, **fields) -> Answer:  # type: ignore[no-untyped-def]
    fields.setdefault("text", "a prompt")
    call = router.stub.Generate(router_pb2.GenerateRequest(**fields), timeout=20)
    return Answer([response async for response in call])


@pytest.mark.parametrize("mode", [SPLIT, LOCAL])
async def test_text_tokens_and_counts(router_for, mode) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("hello")) as fleet, router_for(fleet) as router:
        answer = await ask(router, request_id="r1", mode=mode)
        await until(lambda: fleet.is_idle)
    assert (answer.text, answer.token_text) == ("hello", "hello")
    assert answer.started.request_id == "r1"
    assert answer.started.plan.mode == mode
    assert answer.started.prompt_tokens == answer.finished.usage.prompt_tokens == 8
    assert answer.finished.usage.completion_tokens == 5
    assert answer.finished.finish_reason == common_pb2.FINISH_REASON_STOP
    assert not answer.finished.HasField("stop_match")
    assert len(fleet.prefill.requests) == (1 if mode == SPLIT else 0)
    assert fleet.decode.starts[0].HasField("manifest") == (mode == SPLIT)


async def test_split_hands_the_first_token_and_the_manifest_to_decode(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("xyz")) as fleet, router_for(fleet) as router:
        answer = await ask(router, request_id="r2", tenant="t", cache_salt="s", qos_tier=common_pb2.QOS_TIER_BATCH)
    start, prefill = fleet.decode.starts[0], fleet.prefill.requests[0]
    assert answer.started.plan.mode == SPLIT
    assert answer.started.request_id == "r2"
    assert start.request_id == prefill.request_id == start.manifest.sequence_id
    assert start.request_id.startswith("r2."), "the workers know the attempt, not the caller's id"
    assert list(start.emitted_token_ids) == [ord("x")]
    assert list(start.prompt_token_ids) == list(prefill.token_ids) == [ord(c) for c in "a prompt"]
    assert start.manifest.epoch == 2
    assert (start.tenant, start.cache_salt, start.qos_tier) == ("t", "s", common_pb2.QOS_TIER_BATCH)
    assert 0 < start.deadline_s <= 21  # the wire rounds up
    assert start.sampling == prefill.sampling
    assert start.sampling.HasField("seed"), "both workers need one seed"
    assert start.sampling.max_tokens == 64 - 8


async def test_usage_and_timings_are_the_workers_own(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("xyz")) as fleet, router_for(fleet) as router:
        split, local = await ask(router, mode=SPLIT), await ask(router, mode=LOCAL)
    assert split.finished.usage.cached_tokens == 4, "what decode finds was put there by this very prefill"
    assert local.finished.usage.cached_tokens == 8
    timings = split.finished.timings
    assert (timings.queue_s, timings.prefill_s, timings.decode_s) == (0.375, 0.5, 2.0)
    assert local.finished.timings.queue_s == 0.125
    for timings in (split.finished.timings, local.finished.timings):
        assert timings.tokenize_s > 0
        assert timings.plan_s > 0
        assert timings.tokenize_s + timings.plan_s < timings.time_to_first_token_s < timings.total_s


async def test_the_first_token_does_not_wait_for_the_hand_over(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script("xyz")
    script.has_manifest.clear()
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = router.stub.Generate(router_pb2.GenerateRequest(text="p"), timeout=20)
        assert (await call.read()).HasField("started")
        first = await call.read()
        assert first.chunk.text == "x"
        assert not fleet.decode.starts
        script.has_manifest.set()
        rest = [response async for response in call]
    assert "".join(response.chunk.text for response in rest) == "yz"


@pytest.mark.parametrize("output", ["x", "xyz"])
async def test_a_request_that_prefill_ends_needs_no_decode(router_for, output) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script(output)) as fleet, router_for(fleet) as router:
        answer = await ask(router, sampling=common_pb2.SamplingParams(max_tokens=1))
        await until(lambda: fleet.is_idle)
    assert answer.text == "x"
    reason = common_pb2.FINISH_REASON_STOP if output == "x" else common_pb2.FINISH_REASON_LENGTH
    assert answer.finished.finish_reason == reason
    assert not fleet.decode.starts


@pytest.mark.parametrize("mode", [SPLIT, LOCAL])
@pytest.mark.parametrize(
    ("stop", "text", "tokens"),
    [
        (["ll"], "he", "hell"),
        (["o w", "zz"], "hell", "hello w"),
        (["h"], "", "h"),
        (["d"], "hello worl", "hello world"),
    ],
)
async def test_a_stop_string_ends_text_tokens_and_work(router_for, mode, stop, text, tokens) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("hello world")) as fleet, router_for(fleet) as router:
        sampling = common_pb2.SamplingParams(stop=stop, logprobs=0)
        answer = await ask(router, mode=mode, sampling=sampling)
        await until(lambda: fleet.is_idle)
    assert answer.text == text
    assert answer.token_text == tokens, "tokens end with the last one the stop string needed"
    assert [p.chosen.token_id for c in answer.chunks for p in c.logprobs] == [ord(c) for c in tokens]
    assert answer.finished.finish_reason == common_pb2.FINISH_REASON_STOP
    assert answer.finished.stop_match == stop[0]
    assert answer.finished.usage.completion_tokens == len(tokens)


async def test_a_stop_string_cancels_a_sequence_that_would_go_on(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("hello world", held_after=6)) as fleet, router_for(fleet) as router:
        answer = await ask(router, request_id="r", sampling=common_pb2.SamplingParams(stop=["lo"]))
        assert fleet.decode.cancels == [fleet.decode.starts[0].request_id]
        assert answer.finished.timings.decode_s == 2.0, "the summary of the cancelled sequence is waited for"
        await until(lambda: fleet.is_idle)


async def test_tokens_are_gathered_as_the_caller_allows_but_not_before_a_stop_string(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("hey")) as fleet, router_for(fleet) as router:
        await ask(router, gather_ms=500)
        await ask(router, gather_ms=500, sampling=common_pb2.SamplingParams(stop=["y"]))
    assert [start.gather_ms for start in fleet.decode.starts] == [500, 0]


async def test_logprobs_come_with_their_tokens(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("hey")) as fleet, router_for(fleet) as router:
        answer = await ask(router, sampling=common_pb2.SamplingParams(logprobs=0))
        without = await ask(router)
    for chunk in answer.chunks:
        assert [p.chosen.token_id for p in chunk.logprobs] == list(chunk.token_ids)
    assert all(not chunk.logprobs for chunk in without.chunks)


async def test_a_held_prefix_is_resumed_by_the_decode_worker(router_for) -> None:  # type: ignore[no-untyped-def]
    prompt = list(range(40, 53))  # three full blocks of 4 and one token
    hashes = block_hashes(root_hash(DIGEST, "t", "s"), prompt, LAYOUT.block_tokens)
    async with ScriptedFleet() as fleet, router_for(fleet) as router:
        router.index.store("node", Tier.DEVICE, hashes)
        tokens = router_pb2.TokenIds(token_ids=prompt)
        held = await ask(router, text=None, tokens=tokens, tenant="t", cache_salt="s")
        other = await ask(router, text=None, tokens=tokens, tenant="t", cache_salt="another")
    assert held.started.plan.mode == common_pb2.EXECUTION_MODE_RESUME
    assert held.started.plan.matched_tokens == 12
    assert other.started.plan.mode == SPLIT
    assert other.started.plan.matched_tokens == 0
    assert "12 of 13" in held.started.plan.reason


async def test_fifty_requests_at_once(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("the quick brown fox")) as fleet, router_for(fleet) as router:
        answers = await asyncio.gather(*(ask(router, text=f"prompt {i}") for i in range(50)))
        await until(lambda: fleet.is_idle)
        assert len(router.generations.running) == 0
    assert {answer.text for answer in answers} == {"the quick brown fox"}
    assert len({answer.started.request_id for answer in answers}) == 50
    token_items = sum(len(answer.chunks) for answer in answers)
    assert fleet.tokenizer.message_count < token_items, "items of several requests share a message"


async def test_text_goes_on_at_another_tokenizer(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script("hello world")
    script.has_manifest.clear()
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = router.stub.Generate(
            router_pb2.GenerateRequest(text="p", sampling=common_pb2.SamplingParams(stop=["wo"])), timeout=20
        )
        await call.read()
        assert list((await call.read()).chunk.token_ids) == [ord("h")]
        second = FakeTokenizer(script)
        await fleet.add(Role.TOKENIZER, "tokenizer-2", second)
        await fleet.kill("tokenizer-1")
        del fleet.members["tokenizer-1"]
        router.links.update(fleet.members)
        await until(lambda: second.open_stream_ids)
        script.has_manifest.set()
        rest = [response async for response in call]
    assert "".join(response.chunk.text for response in rest) == "hello ", "text held back before was not lost"
    token_ids = [token_id for response in rest for token_id in response.chunk.token_ids]
    assert "".join(map(chr, token_ids)) == "ello wo", "and no token came twice"
    assert rest[-1].finished.stop_match == "wo"


async def test_encode_passes_over_a_replica_that_is_gone(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet() as fleet:
        second = FakeTokenizer(fleet.script)
        await fleet.add(Role.TOKENIZER, "tokenizer-2", second)
        async with router_for(fleet) as router:
            await until(lambda: fleet.tokenizer.calls and second.calls)
            await fleet.kill("tokenizer-1")
            answers = [await ask(router) for _ in range(4)]
    assert {answer.text for answer in answers} == {"hello"}


def test_the_fake_tokenizer_holds_back() -> None:
    """The tests above mean something only if the fake does what the contract says."""
    streams: dict = {}  # type: ignore[type-arg]
    fake = FakeTokenizer(Script())
    item = tokenizer_pb2.DetokenizeItem(
        stream_id=1, open=tokenizer_pb2.DetokenizeOptions(stop=["bc"]), token_ids=[ord("a"), ord("b")]
    )
    assert fake._answer(item, streams).text == "a"
    answer = fake._answer(tokenizer_pb2.DetokenizeItem(stream_id=1, token_ids=[ord("c"), ord("d")]), streams)
    assert (answer.text, answer.stop_match, answer.stop_token_count) == ("", "bc", 1)


async def test_tokens_that_come_with_an_error_are_told_before_it(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script(decode_error=KvExhaustedError("no blocks"), last_words="bye")
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = router.stub.Generate(
            router_pb2.GenerateRequest(text="p", mode=common_pb2.EXECUTION_MODE_LOCAL), timeout=20
        )
        await call.read()
        text = (await call.read()).chunk.text
        with pytest.raises(KvExhaustedError), translated():
            await call.read()
        await until(lambda: fleet.is_idle)
    assert text == "bye"
