"""Which share of the node's cores the next step may use, agreed on through a page of shared memory.

Two engines that both use all cores ruin each other; one that never may leaves half of them idle. So every worker marks
itself busy before a step and counts who else is: no message, a few microseconds. Knows nothing of engines.
"""

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from forebay.errors import StartError

SLOT_COUNT: Final = 64
_SLOT_BYTES: Final = 64  # a cache line each, so that workers do not disturb one another's
_BEAT: Final = struct.Struct("<Q")
_FORGOTTEN_AFTER_NS: Final = 2_000_000_000
"""A worker that died or was stopped in mid-step counts as busy for so long, and no longer."""


class CoreShare:
    """One worker's slot in its node's page.

    A slot holds the time of its owner's last step, 0 when idle; CLOCK_MONOTONIC is one clock for all processes of a
    host. The slot is ours by a record lock, which the kernel drops with the process.
    """

    def __init__(self, page: Path, core_count: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """Takes a free slot; the page is made if it is not there.

        Raises StartError when 64 workers of this node hold one.
        """
        self._core_count = core_count
        self._clock_ns = clock_ns
        self._file = os.open(page, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, SLOT_COUNT * _SLOT_BYTES)
        self._offset = _lock_a_slot(self._file)
        self._slots = mmap.mmap(self._file, SLOT_COUNT * _SLOT_BYTES)

    def enter(self) -> int:
        """A step begins. Returns the cores it may use, >= 1: an equal share among the workers that are busy now."""
        now_ns = self._clock_ns()
        _BEAT.pack_into(self._slots, self._offset, now_ns)
        return max(1, self._core_count // self._busy_count(now_ns))

    def leave(self) -> None:
        """No step follows for now: the cores are the others'."""
        _BEAT.pack_into(self._slots, self._offset, 0)

    def close(self) -> None:
        """Gives the slot up."""
        self.leave()
        self._slots.close()
        os.close(self._file)

    def _busy_count(self, now_ns: int) -> int:
        count = 0
        for offset in range(0, SLOT_COUNT * _SLOT_BYTES, _SLOT_BYTES):
            (beat_ns,) = _BEAT.unpack_from(self._slots, offset)
            count += beat_ns != 0 and now_ns - beat_ns < _FORGOTTEN_AFTER_NS
        return count


def _lock_a_slot(file: int) -> int:
    for offset in range(0, SLOT_COUNT * _SLOT_BYTES, _SLOT_BYTES):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SLOT_BYTES, offset)
        except OSError:
            continue
        return offset
    raise StartError(f"{SLOT_COUNT} workers of this node run already; stop one, or give this one another --node-id")
