"""When the next message of a stream may be written. Knows no messages.

A message costs every process between worker and client 60 to 160 microseconds of Python, which a fast engine's steps
would have to share the cores with: tokens of a few steps travel together. What somebody waits for goes at once.
"""

import asyncio
from typing import Final

DEFAULT_GATHER_S: Final = 0.02
"""Fifty messages a second look as smooth to a reader as one per token."""


class Gathering:
    """News of one stream: told by `add`, waited for by `ready`."""

    def __init__(self, gather_s: float) -> None:
        """Args: gather_s: at least so long between two messages, unless news are urgent; 0: a message per step."""
        self._gather_s = gather_s
        self._news = asyncio.Event()
        self._urgent = asyncio.Event()
        self._last_s = -gather_s

    def add(self, *, is_urgent: bool = False) -> None:
        """There is something to write."""
        self._news.set()
        if is_urgent:
            self._urgent.set()

    async def ready(self) -> None:
        """Returns when something should be written now."""
        await self._news.wait()
        loop = asyncio.get_running_loop()
        wait_s = self._last_s + self._gather_s - loop.time()
        if wait_s > 0 and not self._urgent.is_set():
            timer = loop.call_later(wait_s, self._urgent.set)
            try:
                await self._urgent.wait()
            finally:
                timer.cancel()
        # One turn of the loop, so that sequences which this step has ended can add their last word.
        await asyncio.sleep(0)
        self._news.clear()
        self._urgent.clear()
        self._last_s = loop.time()
