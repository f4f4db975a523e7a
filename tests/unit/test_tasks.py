"""Background tasks are over when `end_task` returns; a wait takes no longer than it may."""

import asyncio
from contextlib import suppress

from forebay.tasks import end_task, within


async def test_a_task_that_swallows_a_cancel_is_ended_all_the_same() -> None:
    started = asyncio.Event()
    swallowed: list[bool] = []

    async def stubborn() -> None:
        started.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        swallowed.append(True)
        await asyncio.Event().wait()

    task = asyncio.create_task(stubborn())
    await started.wait()
    await end_task(task)
    assert task.cancelled()
    assert swallowed == [True]


async def test_what_a_task_failed_with_is_dropped() -> None:
    async def failing() -> None:
        raise ZeroDivisionError

    task = asyncio.create_task(failing())
    await asyncio.wait([task])
    await end_task(task)
    assert task.done()


async def test_a_wait_says_whether_it_came() -> None:
    event = asyncio.Event()
    assert not await within(0, event.wait())
    event.set()
    assert await within(60, event.wait())
