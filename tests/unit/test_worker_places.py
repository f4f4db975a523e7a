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
        ranks.append(await places.enter(priority))
        order.append(name)

    ranks = [await places.enter(0)]
    tasks = [asyncio.create_task(visit(name, priority)) for name, priority in (("x", 1), ("y", 0), ("z", 0))]
    await settle()
    assert (places.running_count, places.queued_count) == (1, 3)
    for _ in tasks:
        places.leave(ranks.pop())
        await settle()
    assert order == ["y", "z", "x"]
    places.leave(ranks.pop())
    assert places.running_count == 0


async def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    places = Places(places=1, queue_length=0)
    rank = await places.enter(0)
    with pytest.raises(QueueFullError) as caught:
        await places.enter(0)
    assert caught.value.retry_after_s is not None
    places.leave(rank)
    await places.enter(0)


async def test_a_place_given_in_the_turn_of_a_cancel_is_not_lost() -> None:
    places = Places(places=1)
    rank = await places.enter(0)
    waiting = asyncio.create_task(places.enter(0))
    await settle()
    places.leave(rank)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (places.running_count, places.queued_count) == (0, 0)


async def test_the_urgent_push_out_the_less_urgent_and_equals_nobody() -> None:
    places = Places(places=2, pushed_out_at_most=2)
    batch = [await places.enter(1), await places.enter(1)]
    one_more = asyncio.create_task(places.enter(1))
    await settle()
    urgent = [await asyncio.wait_for(places.enter(0), 5) for _ in range(2)]
    assert (places.running_count, places.queued_count) == (2, 3)
    third = asyncio.create_task(places.enter(0))
    await settle()
    places.leave(batch[0])
    await settle()
    assert not third.done(), "two as urgent are inside"
    assert not one_more.done(), "three before it are inside"
    places.leave(urgent[0])
    await settle()
    assert third.done()
    assert not one_more.done()
    places.leave(urgent[1])
    places.leave(third.result())
    await settle()
    assert one_more.done()
    assert (places.running_count, places.queued_count) == (2, 0)


async def test_no_more_are_pushed_out_than_may_be() -> None:
    places = Places(places=2, pushed_out_at_most=1)
    batch = [await places.enter(1), await places.enter(1)]
    await asyncio.wait_for(places.enter(0), 5)
    urgent = asyncio.create_task(places.enter(0))
    await settle()
    assert not urgent.done()
    places.leave(batch[1])
    await settle()
    assert urgent.done()


@pytest.mark.parametrize("pushed_out_at_most", [0, 3])
async def test_the_urgent_do_not_keep_a_less_urgent_one_out_for_ever(pushed_out_at_most: int) -> None:
    places = Places(places=1, pushed_out_at_most=pushed_out_at_most)
    inside = await places.enter(0)
    patient = asyncio.create_task(places.enter(1))
    await settle()
    served = 0
    while not patient.done():
        urgent = asyncio.create_task(places.enter(0))
        await settle()
        places.leave(inside)
        await settle()
        served += 1
        if not patient.done():
            inside = urgent.result()
    assert served == 64


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_is_cancelled_no_place_is_lost_or_given_twice(seed: int) -> None:
    chance = random.Random(seed)
    places, inside = Places(places=3, queue_length=100), set()

    async def visit(number: int) -> None:
        rank = await places.enter(chance.randrange(2))
        try:
            inside.add(number)
            assert len(inside) <= 3
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
        finally:
            inside.discard(number)
            places.leave(rank)

    tasks = [asyncio.create_task(visit(number)) for number in range(60)]
    while not all(task.done() for task in tasks):
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert (places.running_count, places.queued_count) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_no_priority_has_more_inside_than_there_are_places(seed: int) -> None:
    chance = random.Random(seed)
    places, inside = Places(places=3, queue_length=100, pushed_out_at_most=2), []

    async def visit() -> None:
        priority = chance.randrange(3)
        rank = await places.enter(priority)
        inside.append(priority)
        assert inside.count(priority) <= 3
        assert len(inside) <= 5
        for _ in range(chance.randrange(1, 9)):
            await asyncio.sleep(0)
        inside.remove(priority)
        places.leave(rank)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        for _ in range(100):
            group.create_task(visit())
            if chance.random() < 0.5:
                await asyncio.sleep(0)
    assert (places.running_count, places.queued_count) == (0, 0)
