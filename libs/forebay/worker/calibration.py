"""When a worker learns its machine's peaks: in the background, while nobody on the node computes.

Not before serving, since the first token must not wait for it; and given up at once when a step begins. Knows neither
what is measured nor where it is kept.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

from forebay.engine.peaks_file import known_peaks, learn_peaks
from forebay.errors import StartError
from forebay.kernels.cpu.peaks import DisturbedError
from forebay.kernels.peaks import Peaks
from forebay.tasks import end_task

QUIET_S: Final = 1.0
"""How long the node must have computed nothing."""
_LOOKS: Final = 4

_log = logging.getLogger(__name__)


class PeaksSource(Protocol):
    """Where peaks come from. Both are called on threads of their own; as in `forebay.engine.peaks_file`."""

    def known(self) -> Peaks | None:
        """Those that are kept, at once."""
        ...

    def learn(self, is_undisturbed: Callable[[], bool]) -> Peaks:
        """Those that are kept or measured now. Raises DisturbedError."""
        ...


class NativePeaks:
    """Of the native library, kept in the cache folder."""

    known = staticmethod(known_peaks)
    learn = staticmethod(learn_peaks)


class Calibration:
    """One worker's way to its peaks: they are told to `on_peaks` on the event loop, again when they get better."""

    def __init__(
        self,
        source: PeaksSource,
        is_busy: Callable[[], bool],
        on_peaks: Callable[[Peaks], None],
        quiet_s: float = QUIET_S,
    ) -> None:
        """Args: is_busy: whether any worker of the node computes now; asked from another thread while measuring."""
        self._source = source
        self._is_busy = is_busy
        self._on_peaks = on_peaks
        self._quiet_s = quiet_s
        self._is_closed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, on the running loop."""
        self._task = asyncio.create_task(self._run(), name="calibration")

    async def close(self) -> None:
        """Ends it. `is_busy` is not asked any more."""
        self._is_closed = True
        if self._task is not None:
            await end_task(self._task)

    async def _run(self) -> None:
        try:
            peaks = await asyncio.to_thread(self._source.known)
            if peaks is not None:
                self._on_peaks(peaks)
            learned = None
            while learned is None:
                await self._quiet()
                learned = await self._learn()
        except (StartError, MemoryError) as error:
            _log.warning("the machine's peaks cannot be measured (%s); steps have rates, but no shares of them", error)
            return
        except Exception:
            _log.exception("the machine's peaks cannot be measured; steps have rates, but no shares of them")
            return
        if learned != peaks:
            self._on_peaks(learned)

    async def _quiet(self) -> None:
        looks = 0
        while looks < _LOOKS:
            await asyncio.sleep(self._quiet_s / _LOOKS)
            looks = 0 if self._is_busy() else looks + 1

    async def _learn(self) -> Peaks | None:
        try:
            return await asyncio.to_thread(self._source.learn, lambda: not (self._is_closed or self._is_busy()))
        except DisturbedError:
            return None
