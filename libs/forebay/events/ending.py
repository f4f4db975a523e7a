"""Ending background tasks for certain.

Python 3.11's `asyncio.wait_for`, which the NATS client uses, swallows a cancel that arrives together with the result it
waits for (fixed in 3.12). One cancel is therefore not enough.
"""

import asyncio
from typing import Any, Final

AGAIN_S: Final = 0.05


async def end_task(task: "asyncio.Task[Any]") -> None:
    """Cancels the task until it is over. Its exception, if any, is dropped."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=AGAIN_S)
    if not task.cancelled():
        task.exception()
