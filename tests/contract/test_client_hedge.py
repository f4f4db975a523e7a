"""A client that asks a second router where the first is slow: one answer, from whichever has the first token."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from forebay.client import AsyncClient, CompletionStream
from forebay.errors import InvalidFieldError, QueueFullError, WorkerLostError
from forebay.testing.fake_router import FakeRouter, Step, chunk, finished, serving, started

ANSWER: list[Step] = [started("r-2"), chunk("good", 1), chunk(" day", 2, 3), finished()]


@asynccontextmanager
async def asked(slow: list[Step], other: list[Step], after_s: float = 0.01, **options: object):  # type: ignore[no-untyped-def]
    """The stream of a request that the slow one is asked first, and both routers."""
    routers = FakeRouter(slow), FakeRouter(other)
    async with AsyncExitStack() as closing:
        targets = [await closing.enter_async_context(serving(router)) for router in routers]
        client = await closing.enter_async_context(AsyncClient(targets))
        yield client.stream("hi", hedge_after_s=after_s, timeout_s=20, **options), *routers


async def text_of(stream: CompletionStream) -> str:
    return (await stream.finish()).text


async def test_the_second_is_heard_where_the_first_says_nothing() -> None:
    async with asked([started(), asyncio.Event()], ANSWER) as (stream, slow, other):
        assert await text_of(stream) == "good day"
        assert stream.is_hedged
        assert stream.request_id == "r-2"
        assert stream.token_ids == (1, 2, 3)
        assert stream.resume_count == 0
        await asyncio.wait_for(slow.ended.wait(), 10)
        assert slow.was_cancelled
        assert len(slow.requests) == len(other.requests) == 1
        assert slow.requests[0] == other.requests[0]


async def test_the_first_is_heard_where_it_is_first_after_all() -> None:
    go = asyncio.Event()
    async with asked([started(), go, *ANSWER[1:]], [started("r-2"), asyncio.Event()]) as (stream, _, other):
        reading = asyncio.create_task(text_of(stream))
        await asyncio.wait_for(other.began.wait(), 10)
        go.set()
        assert await reading == "good day"
        assert stream.request_id == "r-1"
        await asyncio.wait_for(other.ended.wait(), 10)
        assert other.was_cancelled


async def test_a_router_in_time_is_asked_alone() -> None:
    async with asked(ANSWER, ANSWER, after_s=19.0) as (stream, _, other):
        assert await text_of(stream) == "good day"
        assert not stream.is_hedged
        assert not other.requests


async def test_a_second_that_refuses_changes_nothing() -> None:
    go = asyncio.Event()
    async with asked([started(), go, *ANSWER[1:]], [QueueFullError("full")]) as (stream, _, other):
        reading = asyncio.create_task(text_of(stream))
        await asyncio.wait_for(other.ended.wait(), 10)
        go.set()
        assert await reading == "good day"


async def test_a_first_that_fails_while_the_second_runs_is_forgotten() -> None:
    fails, goes_on = asyncio.Event(), asyncio.Event()
    slow: list[Step] = [started(), fails, WorkerLostError("it died")]
    async with asked(slow, [started("r-2"), goes_on, *ANSWER[1:]]) as (stream, first, other):
        reading = asyncio.create_task(text_of(stream))
        await asyncio.wait_for(other.began.wait(), 10)
        fails.set()
        await asyncio.wait_for(first.ended.wait(), 10)
        goes_on.set()
        assert await reading == "good day"


async def test_where_both_refuse_that_is_told() -> None:
    fails = asyncio.Event()
    slow: list[Step] = [started(), fails, QueueFullError("the first is full")]
    async with asked(slow, [QueueFullError("the second is full")]) as (stream, _, other):
        reading = asyncio.create_task(text_of(stream))
        await asyncio.wait_for(other.ended.wait(), 10)
        fails.set()
        with pytest.raises(QueueFullError, match="is full"):
            await reading


async def test_closing_in_the_race_ends_both() -> None:
    async with asked([started(), asyncio.Event()], [started(), asyncio.Event()]) as (stream, slow, other):
        reading = asyncio.create_task(text_of(stream))
        await asyncio.wait_for(other.began.wait(), 10)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        for router in (slow, other):
            await asyncio.wait_for(router.ended.wait(), 10)
            assert router.was_cancelled


@pytest.fixture
async def lone_client() -> AsyncIterator[AsyncClient]:
    async with serving(FakeRouter(ANSWER)) as target, AsyncClient(target) as client:
        yield client


async def test_one_router_is_never_hedged(lone_client: AsyncClient) -> None:
    stream = lone_client.stream("hi", hedge_after_s=0)
    assert await text_of(stream) == "good day"
    assert not stream.is_hedged


@pytest.mark.parametrize("after_s", [-1, float("nan"), "soon", True])
async def test_a_time_that_is_none_is_refused(lone_client: AsyncClient, after_s: object) -> None:
    with pytest.raises(InvalidFieldError, match="hedge_after_s"):
        lone_client.stream("hi", hedge_after_s=after_s)  # type: ignore[arg-type]
