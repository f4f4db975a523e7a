"""Waiting for a condition: the only way in which tests wait."""

import asyncio
from collections.abc import Awaitable, Callable

INTERVAL_S = 0.005
TIMEOUT_S = 20.0


async def until(condition: Callable[[], object], timeout_s: float = TIMEOUT_S) -> None:
    """Returns as soon as `condition()` is true. Raises TimeoutError when it stays false."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  # conditions of others' objects have no event
            await asyncio.sleep(INTERVAL_S)


async def eventually(
    condition: Callable[[], Awaitable[object]], timeout_s: float = TIMEOUT_S, interval_s: float = INTERVAL_S
) -> None:
    """As `until`, for a condition that must be asked for."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110  # as above
            await asyncio.sleep(interval_s)
