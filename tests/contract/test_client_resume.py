"""A client of several routers, of which one is lost: its answer is that of an undisturbed run, and nothing is left."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from forebay.client import (
    AsyncClient,
    Client,
    Completion,
    CompletionStream,
    ConnectionLostError,
    RequestCancelledError,
    UnreachableError,
)
from forebay.errors import (
    DeadlineExceededError,
    DrainingError,
    ForebayError,
    InvalidFieldError,
    NoWorkerError,
    QueueFullError,
    UnknownRequestError,
    WorkerLostError,
)
from forebay.testing.fake_router import FakeRouter, chunk, finished, serving, started
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import FIRST_HALF, SECOND_HALF, Script
from forebay.testing.waiting import until

OUTPUT = f"one cr{FIRST_HALF}{SECOND_HALF}me two"
AFTER_FIRST_HALF = OUTPUT.index(SECOND_HALF)

Phase = tuple[
    int | None, dict[str, object]
]  # where decode stops while the first router is lost; options of the request
PHASES: dict[str, Phase] = {
    "before Started": (None, {}),
    "after Started": (0, {}),
    "in the text": (4, {"logprobs": 0}),
    "in the middle of a character": (AFTER_FIRST_HALF, {"logprobs": 0}),
    "within a stop string": (AFTER_FIRST_HALF + 3, {"stop": ["me t"], "logprobs": 0}),
    "within what might be a stop string": (len(OUTPUT) - 1, {"stop": ["two!"]}),
    "sampled without a seed": (4, {"temperature": 1.0}),
    "in few messages": (4, {"gather_ms": 1000}),
}


@asynccontextmanager
async def two_routers(router_for, fleet: ScriptedFleet) -> AsyncIterator[tuple[object, object]]:  # type: ignore[no-untyped-def]
    async with router_for(fleet, failover_s=5) as first, router_for(fleet, failover_s=5) as second:
        yield first, second


def what_matters(completion: Completion) -> tuple[object, ...]:
    usage = completion.usage
    return (
        completion.text,
        completion.token_ids,
        completion.logprobs,
        completion.finish_reason,
        completion.stop_match,
        (usage.prompt_tokens, usage.completion_tokens),
    )


@pytest.mark.parametrize("mode", ["local", "split"])
@pytest.mark.parametrize(("held_after", "options"), PHASES.values(), ids=PHASES)
async def test_a_router_is_lost_at_each_phase(router_for, held_after, options, mode) -> None:  # type: ignore[no-untyped-def]
    script = Script(OUTPUT)
    async with ScriptedFleet(script) as fleet, two_routers(router_for, fleet) as (first, second):
        async with AsyncClient(first.address) as client:
            undisturbed = await client.generate("a prompt", mode=mode, **options)
        script.held_after = held_after
        if held_after is None:
            script.has_encoded.clear()
        if held_after == 0:
            script.has_token.clear()  # in SPLIT, prefill samples the first
        async with AsyncClient([first.address, second.address]) as client:
            stream = client.stream("a prompt", mode=mode, **options)
            reading = asyncio.create_task(stream.finish())
            await until(lambda: reached(fleet, stream, held_after))
            seeds = {start.sampling.seed for start in fleet.decode.starts[1:]}
            await first.kill()
            script.has_encoded.set()
            script.has_token.set()
            script.goes_on.set()
            completion = await reading
            assert what_matters(completion) == what_matters(undisturbed)
            assert stream.target == second.address
            assert stream.resume_count == (held_after is not None)
            if held_after:
                seeds |= {start.sampling.seed for start in fleet.decode.starts[1:]}
                assert len(seeds) == 1, "the second router samples with the first one's seed"
        await until(lambda: fleet.is_idle)
        assert [len(router.generations.running) for router in (first, second)] == [0, 0]


def reached(fleet: ScriptedFleet, stream: CompletionStream, held_after: int | None) -> bool:
    """Whether the request waits where the script stops it, and the client has all there is."""
    if held_after is None:
        return bool(fleet.tokenizer.encoding)
    if held_after == 0:
        return stream.plan is not None
    return len(stream.token_ids) == held_after


async def test_a_router_is_lost_after_the_last_token_and_before_the_end() -> None:
    steps = [started(), chunk("Par", 1, logprob=-0.5), chunk("is", 2, logprob=-0.25), DrainingError("stopping")]
    whole = FakeRouter([started(), finished()])
    async with serving(FakeRouter(steps)) as one, serving(whole) as other, AsyncClient([one, other]) as client:
        completion = await client.generate("Capital?", logprobs=1)
    assert (completion.text, completion.token_ids, len(completion.logprobs)) == ("Paris", (1, 2), 2)
    (asked,) = whole.requests
    assert list(asked.resume.emitted_token_ids) == [1, 2]
    assert asked.resume.text_characters == len("Paris")
    assert asked.request_id == "r-1"
    assert asked.sampling.seed == 17
    assert asked.sampling.logprobs == 1


async def test_the_last_token_but_not_the_end_against_real_routers(router_for) -> None:  # type: ignore[no-untyped-def]
    for output, options in (("hello", {}), ("hello world", {"max_tokens": 5}), ("hello world", {"stop": ["o"]})):
        async with ScriptedFleet(Script(output)) as fleet, router_for(fleet) as router:
            async with AsyncClient(router.address) as client:
                undisturbed = await client.generate("a prompt", **options)
            steps = [
                started(),
                chunk(undisturbed.text, *undisturbed.token_ids),
                DrainingError("stopping"),
            ]
            async with serving(FakeRouter(steps)) as one, AsyncClient([one, router.address]) as client:
                assert what_matters(await client.generate("a prompt", **options)) == what_matters(undisturbed)
            await until(lambda fleet=fleet: fleet.is_idle)  # type: ignore[misc]


async def test_new_requests_go_round_and_pass_over_a_router_that_was_lost(free_address: str) -> None:
    one, other = FakeRouter([started(), finished()]), FakeRouter([started(), finished()])
    async with serving(one) as first, serving(other) as second:
        async with AsyncClient(f"{first}, {second}") as client:
            for _ in range(4):
                await client.generate("x")
        assert (len(one.requests), len(other.requests)) == (2, 2)
        async with AsyncClient([first, free_address, second]) as client:
            targets = []
            for _ in range(6):
                stream = client.stream("x")
                await stream.finish()
                targets.append(stream.target)
        assert set(targets) == {first, second}
        assert client.target == f"{first},{free_address},{second}"


REFUSED = [DrainingError("stopping"), NoWorkerError("no decode worker")]


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: error.reason)
async def test_one_that_refuses_is_passed_over(error: ForebayError) -> None:
    other = FakeRouter([started(), chunk("hi", 1), finished()])
    async with serving(FakeRouter([error])) as first, serving(other) as second, AsyncClient([first, second]) as client:
        assert (await client.generate("x")).text == "hi"


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: error.reason)
async def test_when_all_refuse_each_was_asked_once(error: ForebayError) -> None:
    routers = [FakeRouter([error]), FakeRouter([error])]
    async with serving(routers[0]) as first, serving(routers[1]) as second, AsyncClient([first, second]) as client:
        with pytest.raises(type(error)):
            await client.generate("x")
    assert [len(router.requests) for router in routers] == [1, 1]


@pytest.mark.parametrize(
    "error",
    [
        InvalidFieldError("bad", field="x"),
        QueueFullError("full", retry_after_s=1),
        WorkerLostError("3 workers were lost with this request in their hands"),
        RequestCancelledError("the request was ended by Cancel"),
        ForebayError("a defect"),
    ],
    ids=lambda error: error.reason,
)
async def test_what_says_something_of_the_request_is_not_asked_again(error: ForebayError) -> None:
    other = FakeRouter([started(), finished()])
    for steps in ([error], [started(), chunk("a", 1), error]):
        async with serving(FakeRouter(steps)) as one, serving(other) as two, AsyncClient([one, two]) as client:
            with pytest.raises(type(error)):
                await client.generate("x")
    assert not other.requests


async def test_nobody_there_is_said_with_all_names(free_address: str) -> None:
    async with AsyncClient([free_address, "127.0.0.1:1"]) as client:
        with pytest.raises(UnreachableError, match=f"{free_address} or 127.0.0.1:1"):
            await client.generate("x")
        with pytest.raises(UnreachableError):
            await client.fleet()


async def lost_after_a_token(
    router_for: Callable[..., object],
    act: Callable[[AsyncClient, CompletionStream], Awaitable[None]],
    **options: object,
) -> None:
    """The only router that is left does not come again; `act` is done while the client tries."""
    script = Script("hello", held_after=2)
    async with ScriptedFleet(script) as fleet, router_for(fleet) as router, AsyncClient(router.address) as client:  # type: ignore[attr-defined]
        stream = client.stream("x", **options)  # type: ignore[arg-type]
        reading = asyncio.create_task(stream.finish())
        await until(lambda: len(stream.token_ids) == 2)
        await router.kill()
        await act(client, stream)
        try:
            await reading
        finally:
            assert stream.text == "he"


async def wait(client: AsyncClient, stream: CompletionStream) -> None:
    pass


async def test_its_tries_are_bounded(router_for) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConnectionLostError):
        await lost_after_a_token(router_for, wait)


async def test_its_deadline_bounds_them(router_for) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DeadlineExceededError):
        await lost_after_a_token(router_for, wait, timeout_s=1.0)


async def close_client(client: AsyncClient, stream: CompletionStream) -> None:
    await asyncio.sleep(0)
    await client.aclose()


async def close_stream(client: AsyncClient, stream: CompletionStream) -> None:
    await asyncio.sleep(0)
    stream.close()


@pytest.mark.parametrize("close", [close_client, close_stream])
async def test_closing_ends_the_tries(router_for, close) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RequestCancelledError):
        await lost_after_a_token(router_for, close)


async def test_the_only_router_may_come_again(router_for) -> None:  # type: ignore[no-untyped-def]
    """Its address may also be that of several, behind a balancer."""
    fleet, again = ScriptedFleet(Script("hello", held_after=2)), FakeRouter([started(), chunk("llo", 1), finished()])
    async with fleet, router_for(fleet) as router, AsyncClient(router.address) as client:
        stream = client.stream("x")
        reading = asyncio.create_task(stream.finish())
        await until(lambda: len(stream.token_ids) == 2)
        await router.kill()
        async with serving(again, router.address):
            completion = await reading
    assert completion.text == "hello"
    timings = completion.timings
    assert timings.total_s > timings.time_to_first_token_s > 0, "the fake router said others, of its part alone"
    assert timings.total_s != 2.5


async def test_cancel_finds_the_router_that_has_the_request(router_for, free_address) -> None:  # type: ignore[no-untyped-def]
    script = Script("hello", held_after=2)
    async with (
        ScriptedFleet(script) as fleet,
        two_routers(router_for, fleet) as (first, second),
        AsyncClient(second.address) as only_second,
        AsyncClient([free_address, first.address, second.address]) as client,
    ):
        reading = asyncio.create_task(only_second.generate("x", request_id="r"))
        await until(lambda: len(second.generations.running))
        await client.cancel("r")
        with pytest.raises(RequestCancelledError):
            await reading
        with pytest.raises(UnknownRequestError):
            await client.cancel("r")
        await client.fleet()


async def test_plain_code_sees_a_pause(router_for) -> None:  # type: ignore[no-untyped-def]
    broken = FakeRouter([started(), chunk("he", ord("h"), ord("e")), DrainingError("stopping")])

    def ask(targets: list[str]) -> str:
        with Client(targets) as client, client.stream("x") as stream:
            text = "".join(piece.text for piece in stream)
            assert (stream.resume_count, stream.target) == (1, targets[1])
            return text

    async with ScriptedFleet(Script("hello")) as fleet, router_for(fleet) as router, serving(broken) as address:
        assert await asyncio.to_thread(ask, [address, router.address]) == "hello"


def test_a_client_needs_an_address() -> None:
    with pytest.raises(ValueError, match="no router"):
        AsyncClient(" , ")
