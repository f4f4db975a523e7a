"""Tasks of an event loop: ended for certain, and waited for no longer than so many seconds."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, Final, TypeVar

AGAIN_S: Final = 0.05
_Result = TypeVar("_Result")


def run(main: Coroutine[Any, Any, _Result]) -> _Result:
    """As asyncio.run, for commands. Ctrl-C raises KeyboardInterrupt, also where it is pressed twice."""
    try:
        return asyncio.run(main)
    except asyncio.CancelledError:
        # The second one met the loop while it was ending for the first. Nobody else cancels a main task.
        raise KeyboardInterrupt from None


async def end_task(task: "asyncio.Task[Any]") -> None:
    """Cancels the task until it is over. Its exception, if any, is dropped."""
    # Python 3.11's `asyncio.wait_for`, which the NATS client uses, swallows a cancel that arrives together with the
    # result it waits for (fixed in 3.12). One cancel is therefore not enough.
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=AGAIN_S)
    if not task.cancelled():
        task.exception()


async def within(seconds: float, waiting: Awaitable[object]) -> bool:
    """Waits for it; returns whether it came within so many seconds. What did not is cancelled."""
    try:
        async with asyncio.timeout(seconds):
            await waiting
    except TimeoutError:
        return False
    return True
