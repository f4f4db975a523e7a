"""When a decode stream writes: at once what somebody waits for, the rest together."""

import asyncio

from forebay.decode.gathering import Gathering

NEVER_S, SOON_S = 3600.0, 30.0


async def test_the_first_news_are_written_at_once() -> None:
    news = Gathering(NEVER_S)
    news.add()

    await asyncio.wait_for(news.ready(), SOON_S)


async def test_later_news_wait_until_the_time_between_messages_has_passed() -> None:
    news = Gathering(NEVER_S)
    news.add()
    await news.ready()
    news.add()
    waiting = asyncio.create_task(news.ready())
    await asyncio.sleep(0.05)
    assert not waiting.done()

    news.add()
    await asyncio.sleep(0.05)
    assert not waiting.done(), "more of the same does not hasten it"

    news.add(is_urgent=True)
    await asyncio.wait_for(waiting, SOON_S)


async def test_news_are_written_when_their_time_has_come() -> None:
    news = Gathering(0.01)
    for _ in range(3):
        news.add()
        await asyncio.wait_for(news.ready(), SOON_S)


async def test_without_gathering_every_step_is_a_message() -> None:
    news = Gathering(0.0)
    for _ in range(3):
        news.add()
        await asyncio.wait_for(news.ready(), SOON_S)


async def test_nothing_is_ready_without_news_even_after_urgent_ones() -> None:
    news = Gathering(0.0)
    news.add(is_urgent=True)
    await news.ready()
    waiting = asyncio.create_task(news.ready())
    await asyncio.sleep(0.05)

    assert not waiting.done()
    waiting.cancel()
