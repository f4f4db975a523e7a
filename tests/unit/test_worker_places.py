"""Places and the queue before them."""

import asyncio
import random

import pytest

from forebay.errors import QueueFullError
from forebay.worker.places import Places


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_places_are_given_by_priority_then_arrival() -> None:
    places, order = Places(places=1), []

    async def visit(name: str, priority: int) -> None:
        await places.enter(priority)
        order.append(name)

    await places.enter(0)
    tasks = [asyncio.create_task(visit(name, priority)) for name, priority in (("x", 1), ("y", 0), ("z", 0))]
    await settle()
    assert (places.running_count, places.queued_count) == (1, 3)
    for _ in tasks:
        places.leave()
        await settle()
    assert order == ["y", "z", "x"]
    places.leave()
    assert places.running_count == 0


async def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    places = Places(places=1, queue_length=0)
    await places.enter(0)
    with pytest.raises(QueueFullError) as caught:
        await places.enter(0)
    assert caught.value.retry_after_s is not None
    places.leave()
    await places.enter(0)


async def test_a_place_given_in_the_turn_of_a_cancel_is_not_lost() -> None:
    places = Places(places=1)
    await places.enter(0)
    waiting = asyncio.create_task(places.enter(0))
    await settle()
    places.leave()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (places.running_count, places.queued_count) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_is_cancelled_no_place_is_lost_or_given_twice(seed: int) -> None:
    chance = random.Random(seed)
    places, inside = Places(places=3, queue_length=100), set()

    async def visit(number: int) -> None:
        await places.enter(chance.randrange(2))
        try:
            inside.add(number)
            assert len(inside) <= 3
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
        finally:
            inside.discard(number)
            places.leave()

    tasks = [asyncio.create_task(visit(number)) for number in range(60)]
    while not all(task.done() for task in tasks):
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert (places.running_count, places.queued_count) == (0, 0)
