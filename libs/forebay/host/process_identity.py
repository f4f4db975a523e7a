"""Who a process is: a pid alone names it only until it is reused. Linux: the kernel's word, from /proc."""

import os
from dataclasses import dataclass
from typing import Final, Self

_MOST_STAT_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process of this boot: its pid, and its start in clock ticks since boot."""

    pid: int
    start_ticks: int

    @classmethod
    def current(cls) -> Self:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has this pid now. Raises ProcessLookupError if there is none."""
        stat = _read_stat(pid)
        if stat is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, stat.start_ticks)

    def is_running(self) -> bool:
        """Whether this very process can still do anything."""
        stat = _read_stat(self.pid)
        if stat is None or stat.start_ticks != self.start_ticks:
            return False
        # A process whose first thread has ended is a zombie while its other threads go on writing.
        return stat.state not in "ZX" or stat.thread_count > 1


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    thread_count: int
    start_ticks: int


def _read_stat(pid: int) -> _Stat | None:
    try:
        file = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        stat = os.read(file, _MOST_STAT_BYTES)
    except ProcessLookupError:
        return None
    finally:
        os.close(file)
    # The command in field 2 may hold spaces and parentheses: count from behind it. fields[0] is field 3.
    fields = stat.rpartition(b")")[2].split()
    return _Stat(state=fields[0].decode(), thread_count=int(fields[17]), start_ticks=int(fields[19]))
