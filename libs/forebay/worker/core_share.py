"""Which share of the node's cores the next step may use, agreed on through a page of shared memory.

Two engines that both use all cores ruin each other; one that never may leaves half of them idle. So every worker says
before a step what it computes, and reads who else does: no message, a few microseconds. Knows nothing of engines.
"""

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Final

from forebay.errors import StartError
from forebay.worker.core_division import LEAST_URGENT, StepWork, divide_cores

SLOT_COUNT: Final = 64
_SLOT_BYTES: Final = 64  # a cache line each, so that workers do not disturb one another's
_SLOT_WORDS: Final = _SLOT_BYTES // 8
_SLOTS: Final = range(SLOT_COUNT)
_BEATS: Final = struct.Struct("<" + "Q56x" * SLOT_COUNT)  # the first word of every slot
_SLO_SHIFT: Final = 32
_PRIORITY_MASK: Final = 0xFF
_FORGOTTEN_AFTER_NS: Final = 2_000_000_000
"""A worker that died or was stopped in mid-step counts as busy for so long, and no longer."""

PROMPTS: Final = StepWork()


class CoreShare:
    """One worker's slot in its node's page.

    A slot holds two words, each stored at once: the time of its owner's last step, 0 when idle, and what that step
    computes (priority, and its SLO in microseconds where it decodes). CLOCK_MONOTONIC is one clock for all processes of
    a host. The slot is ours by a record lock, which the kernel drops with the process.
    """

    def __init__(
        self,
        page: Path,
        core_count: int,
        most_cores: int | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Takes a free slot; the page is made if it is not there.

        core_count: of the node, the same for all its workers. most_cores: what this one may use at most; None: all.
        Raises StartError when 64 workers of this node hold one.
        """
        self._core_count = core_count
        self._most_cores = most_cores or core_count
        self._clock_ns = clock_ns
        self._file = os.open(page, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, SLOT_COUNT * _SLOT_BYTES)
        self._slot = _lock_a_slot(self._file)
        self._page = mmap.mmap(self._file, SLOT_COUNT * _SLOT_BYTES)
        self._words = memoryview(self._page).cast("Q")

    def enter(self, work: StepWork = PROMPTS) -> int:
        """A step begins. Returns the cores it may use, >= 1: its part among the workers that are busy now."""
        now_ns, beat = self._clock_ns(), self._slot * _SLOT_WORDS
        self._words[beat + 1] = _packed(work)
        self._words[beat] = now_ns
        busy = self._busy_slots(now_ns)
        priorities = tuple(self._words[slot * _SLOT_WORDS + 1] & _PRIORITY_MASK for slot in busy)
        cores = divide_cores(self._core_count, priorities)[busy.index(self._slot)]
        return min(cores, self._most_cores)

    def leave(self) -> None:
        """No step follows for now: the cores are the others'."""
        self._words[self._slot * _SLOT_WORDS] = 0

    def is_anyone_busy(self) -> bool:
        """Whether some worker of the node computes now, this one included."""
        return bool(self._busy_slots(self._clock_ns()))

    def step_slo_of_others_s(self) -> float | None:
        """The tightest step-time SLO among the other workers that decode now, in seconds; None: none does."""
        others = (slot for slot in self._busy_slots(self._clock_ns()) if slot != self._slot)
        slos_us = [self._words[slot * _SLOT_WORDS + 1] >> _SLO_SHIFT for slot in others]
        return min((slo_us / 1e6 for slo_us in slos_us if slo_us), default=None)

    def close(self) -> None:
        """Gives the slot up."""
        self.leave()
        self._words.release()
        self._page.close()
        os.close(self._file)

    def _busy_slots(self, now_ns: int) -> list[int]:
        beats_ns = _BEATS.unpack_from(self._page)
        return [slot for slot in compress(_SLOTS, beats_ns) if now_ns - beats_ns[slot] < _FORGOTTEN_AFTER_NS]


def _packed(work: StepWork) -> int:
    """The second word of a slot; 0 is an urgent prompt."""
    slo_us = 0 if work.step_slo_s is None else max(1, min(int(work.step_slo_s * 1e6), 2**32 - 1))
    return slo_us << _SLO_SHIFT | min(work.priority, LEAST_URGENT)


def _lock_a_slot(file: int) -> int:
    for slot in _SLOTS:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SLOT_BYTES, slot * _SLOT_BYTES)
        except OSError:
            continue
        return slot
    raise StartError(f"{SLOT_COUNT} workers of this node run already; stop one, or give this one another --node-id")
