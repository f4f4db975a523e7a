"""A request that was lost with its router goes on at another: what its caller has not got comes, and is right."""

import asyncio
from dataclasses import dataclass, field

import pytest

from forebay.errors import DuplicateRequestError, InvalidFieldError, QueueFullError, RequestCancelledError
from forebay.role import Role
from forebay.rpc.status import translated
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import FIRST_HALF, SECOND_HALF, FakeDecode, FakeTokenizer, Script
from forebay.testing.waiting import until
from forebay.v1 import common_pb2, router_pb2

Sampling = common_pb2.SamplingParams
SPLIT, LOCAL = common_pb2.EXECUTION_MODE_SPLIT, common_pb2.EXECUTION_MODE_LOCAL
CREME = f"cr{FIRST_HALF}{SECOND_HALF}me br{FIRST_HALF}"


@dataclass
class Heard:
    """What a caller has of an answer."""

    started: router_pb2.Started = field(default_factory=router_pb2.Started)
    chunks: list[router_pb2.Chunk] = field(default_factory=list)
    finished: router_pb2.Finished = field(default_factory=router_pb2.Finished)

    @classmethod
    def of(cls, text: str, tokens: str) -> "Heard":
        """One chunk."""
        chunk = router_pb2.Chunk(text=text, token_ids=map(ord, tokens))
        return cls(router_pb2.Started(request_id="r", seed=1), [chunk])

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> list[int]:
        return [token_id for chunk in self.chunks for token_id in chunk.token_ids]

    @property
    def logprobs(self) -> list[float]:
        return [one.chosen.logprob for chunk in self.chunks for one in chunk.logprobs]

    @property
    def end(self) -> tuple[int, str, int, int]:
        usage = self.finished.usage
        return self.finished.finish_reason, self.finished.stop_match, usage.prompt_tokens, usage.completion_tokens

    def before(self, chunk_count: int) -> "Heard":
        """The same, had the router been lost after so many chunks."""
        return Heard(self.started, self.chunks[:chunk_count])


async def read(call) -> Heard:  # type: ignore[no-untyped-def]
    heard = Heard()
    with translated():
        async for response in call:
            if response.HasField("started"):
                heard.started = response.started
            elif response.HasField("chunk"):
                heard.chunks.append(response.chunk)
            else:
                heard.finished = response.finished
    return heard


def ask(router, **fields):  # type: ignore[no-untyped-def]
    return router.stub.Generate(router_pb2.GenerateRequest(**({"text": "a prompt"} | fields)), timeout=20)


def resume(router, heard: Heard, sampling: Sampling | None = None, **fields):  # type: ignore[no-untyped-def]
    point = router_pb2.ResumePoint(
        emitted_token_ids=heard.token_ids,
        text_characters=len(heard.text),
        model_digest=heard.started.model_digest,
    )
    resumed = Sampling()
    resumed.CopyFrom(sampling or Sampling())
    resumed.seed = heard.started.seed
    return ask(router, sampling=resumed, resume=point, request_id=heard.started.request_id, **fields)


ANSWERS = {
    "by itself": ("hello world", Sampling(logprobs=0)),
    "at max_tokens": ("hello world", Sampling(logprobs=0, max_tokens=7)),
    "at a stop string": ("hello world", Sampling(logprobs=0, stop=["o wor"])),
    "with what might have been a stop string": ("hello world", Sampling(stop=["rld!"])),
    "in the middle of a character": (CREME, Sampling(logprobs=0)),
    "with a stop string behind a character of two tokens": (CREME, Sampling(stop=["me b"])),
}


@pytest.mark.parametrize("mode", [SPLIT, LOCAL])
@pytest.mark.parametrize(("output", "sampling"), ANSWERS.values(), ids=ANSWERS)
async def test_it_may_be_lost_after_any_chunk(router_for, output, sampling, mode) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script(output)) as fleet, router_for(fleet) as router:
        undisturbed = await read(ask(router, sampling=sampling, mode=mode))
        for chunk_count in range(len(undisturbed.chunks) + 1):
            had = undisturbed.before(chunk_count)
            fleet.decode.starts.clear()
            rest = await read(resume(router, had, sampling, mode=mode))
            assert had.text + rest.text == undisturbed.text
            assert had.token_ids + rest.token_ids == undisturbed.token_ids
            assert had.logprobs + rest.logprobs == undisturbed.logprobs
            assert rest.end == undisturbed.end
            assert rest.started.seed == undisturbed.started.seed
            for start in fleet.decode.starts if had.token_ids else ():
                assert list(start.emitted_token_ids) == had.token_ids
                assert start.sampling.seed == undisturbed.started.seed
        await until(lambda: fleet.is_idle)


async def test_nothing_is_computed_for_a_stop_string_that_the_caller_has_passed(router_for) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("hello world")) as fleet, router_for(fleet) as router:
        sampling = Sampling(stop=["o w"])
        whole = await read(ask(router, sampling=sampling, mode=LOCAL))
        fleet.decode.starts.clear()
        rest = await read(resume(router, whole, sampling))
        assert not rest.started.HasField("plan")
        assert not fleet.decode.starts
        assert not rest.chunks
        assert rest.end == whole.end


async def test_text_that_the_caller_lacks_is_said_at_once(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script("hello", held_after=4)
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        call = resume(router, Heard.of("h", "hell"))
        assert (await call.read()).HasField("started")
        assert (await call.read()).chunk == router_pb2.Chunk(text="ell")
        script.goes_on.set()
        assert (await read(call)).text == "o"


@pytest.mark.parametrize("tokens", ["he", "hello"], ids=["more tokens follow", "it is complete"])
async def test_more_text_than_the_tokens_have_is_refused(router_for, tokens) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("hello")) as fleet, router_for(fleet) as router:
        with pytest.raises(InvalidFieldError) as caught:
            await read(resume(router, Heard.of("hello!", tokens)))
        assert caught.value.field == "resume.text_characters"
        await until(lambda: fleet.is_idle and not len(router.generations.running))


async def test_it_takes_over_from_a_call_that_still_runs(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script("hello world", held_after=5)
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router:
        forgotten = ask(router, request_id="r", mode=LOCAL)
        had = Heard((await forgotten.read()).started)
        while len(had.token_ids) < 5:
            had.chunks.append((await forgotten.read()).chunk)
        resumed = asyncio.create_task(read(resume(router, had)))
        with pytest.raises(RequestCancelledError):
            await read(forgotten)
        with pytest.raises(DuplicateRequestError):
            await read(ask(router, request_id="r"))
        script.goes_on.set()
        assert had.text + (await resumed).text == "hello world"
        assert not len(router.generations.running)
        await until(lambda: fleet.is_idle)


async def test_it_waits_for_a_place_since_it_was_accepted_once(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script("hello", decode_error=QueueFullError("full"))
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=10) as router:
        resumed = asyncio.create_task(read(resume(router, Heard.of("he", "he"))))
        await until(lambda: fleet.decode.starts)
        script.decode_error = None
        assert (await resumed).text == "llo"


@pytest.mark.parametrize("missing", ["tokenizer-1", "decode-1"])
async def test_it_waits_for_whom_it_needs(router_for, missing) -> None:  # type: ignore[no-untyped-def]
    """A router that has just begun does not know the fleet yet."""
    async with ScriptedFleet(Script("hello")) as fleet, router_for(fleet, failover_s=10) as router:
        member = fleet.members.pop(missing)
        router.links.update(fleet.members)
        resumed = asyncio.create_task(read(resume(router, Heard.of("he", "he"))))
        await until(lambda: len(router.generations.running))
        fleet.members[missing] = member
        router.links.update(fleet.members)
        assert (await resumed).text == "llo"


async def test_its_workers_may_fail_as_any_others(router_for) -> None:  # type: ignore[no-untyped-def]
    script = Script("hello world", held_after=6)
    async with ScriptedFleet(script) as fleet, router_for(fleet, failover_s=10) as router:
        resumed = asyncio.create_task(read(resume(router, Heard.of("hell", "hell"))))
        await until(lambda: fleet.decode.running)
        await fleet.add(Role.DECODE, "decode-2", FakeDecode(script))
        await fleet.add(Role.TOKENIZER, "tokenizer-2", FakeTokenizer(script))
        router.links.update(fleet.members)
        await fleet.kill("tokenizer-1")
        await fleet.kill("decode-1")
        script.goes_on.set()
        rest = await resumed
    assert rest.text == "o world"
    assert "".join(map(chr, rest.token_ids)) == "o world"


@pytest.mark.parametrize("phase", ["text is recalled", "a worker is waited for"])
async def test_a_cancel_ends_it_at_once(router_for, phase) -> None:  # type: ignore[no-untyped-def]
    async with ScriptedFleet(Script("hello")) as fleet, router_for(fleet, failover_s=60) as router:
        if phase == "text is recalled":
            fleet.script.has_text.clear()
        else:
            del fleet.members["decode-1"]
            router.links.update(fleet.members)
        resumed = asyncio.create_task(read(resume(router, Heard.of("he", "he"))))
        await until(lambda: fleet.tokenizer.message_count)
        await router.stub.Cancel(router_pb2.CancelRequest(request_id="r"))
        with pytest.raises(RequestCancelledError):
            await resumed
        await until(lambda: not len(router.generations.running), timeout_s=1)
