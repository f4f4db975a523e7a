"""Notices a step that does not end: a worker that answers health and nothing else keeps its requests for ever.

Nobody can end a thread inside a kernel, and none of its KV blocks may be another's while it could still write to them.
So the whole process ends, at once: the KV-cache service sees it go, and routers go on elsewhere.
"""

import asyncio
import logging
import math
import os
from collections.abc import Callable
from typing import Final

_log = logging.getLogger(__name__)

TICK_S: Final = 1.0
EXIT_CODE: Final = 1


class StepWatch:
    """Counts for how many ticks a step has been under way.

    Ticks, not seconds: a process that was stopped for a minute has not computed for a minute.
    """

    def __init__(self, most_ticks: int) -> None:
        self._most_ticks = most_ticks
        self._step: int | None = None
        self._ticks = 0

    def tick(self, step: int | None) -> bool:
        """step: number of the step under way now; None: none. True: it is the same for more ticks than it may be."""
        self._ticks = self._ticks + 1 if step is not None and step == self._step else 0
        self._step = step
        return self._ticks >= self._most_ticks


async def end_when_stuck(
    step_under_way: Callable[[], int | None],
    stuck_s: float,
    end: Callable[[int], object] = os._exit,
    tick_s: float = TICK_S,
) -> None:
    """Ends the process when a step takes `stuck_s` or longer; runs until it is cancelled."""
    watch = StepWatch(max(1, math.ceil(stuck_s / tick_s)))
    while True:
        await asyncio.sleep(tick_s)
        if watch.tick(step_under_way()):
            _log.critical("a step has not ended for %g s: this worker ends, so that others can go on", stuck_s)
            end(EXIT_CODE)
            return
