"""Places and the queue before them."""

import asyncio
import random

import pytest

from forebay.errors import QueueFullError
from forebay.worker.admission import Admission


async def settle() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def test_places_are_given_by_priority_then_arrival() -> None:
    admission, order = Admission(places=1), []

    async def visit(name: str, priority: int) -> None:
        await admission.enter(priority)
        order.append(name)

    await admission.enter(0)
    tasks = [asyncio.create_task(visit(name, priority)) for name, priority in (("x", 1), ("y", 0), ("z", 0))]
    await settle()
    assert (admission.running_count, admission.queued_count) == (1, 3)
    for _ in tasks:
        admission.leave()
        await settle()
    assert order == ["y", "z", "x"]
    admission.leave()
    assert admission.running_count == 0


async def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    admission = Admission(places=1, queue_length=0)
    await admission.enter(0)
    with pytest.raises(QueueFullError) as caught:
        await admission.enter(0)
    assert caught.value.retry_after_s is not None
    admission.leave()
    await admission.enter(0)


async def test_a_place_given_in_the_turn_of_a_cancel_is_not_lost() -> None:
    admission = Admission(places=1)
    await admission.enter(0)
    waiting = asyncio.create_task(admission.enter(0))
    await settle()
    admission.leave()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (admission.running_count, admission.queued_count) == (0, 0)


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_is_cancelled_no_place_is_lost_or_given_twice(seed: int) -> None:
    chance = random.Random(seed)
    admission, inside = Admission(places=3, queue_length=100), set()

    async def visit(number: int) -> None:
        await admission.enter(chance.randrange(2))
        try:
            inside.add(number)
            assert len(inside) <= 3
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
        finally:
            inside.discard(number)
            admission.leave()

    tasks = [asyncio.create_task(visit(number)) for number in range(60)]
    while not all(task.done() for task in tasks):
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert (admission.running_count, admission.queued_count) == (0, 0)
