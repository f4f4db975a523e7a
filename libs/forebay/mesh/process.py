"""Processes that outlive the one that started them: started detached, recognised later, signalled without mistake.

A pid alone names a process only until it is reused. Here a process is a pid and its start time, and signals go through
a pidfd that is opened before the start time is compared, so that no other process can ever be hit.
"""

import os
import select
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic

from forebay.host.process_identity import ProcessIdentity


def spawn(command: Sequence[str], log_path: Path, environment: Mapping[str, str]) -> ProcessIdentity:
    """Starts a program in a session of its own, without input, its output in `log_path` (emptied first).

    Raises OSError if the program cannot be started.
    """
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    pid = os.posix_spawn(
        command[0],
        list(command),
        dict(environment),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_path), log_flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],  # a shell's background jobs ignore some
    )
    return ProcessIdentity.of(pid)  # a child is in /proc until its parent has waited for it


def open_pidfd(process: ProcessIdentity) -> int | None:
    """A file descriptor that becomes readable when the process ends; None if it has ended already."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if process.is_running():
        return pidfd
    os.close(pidfd)
    return None


def stop(processes: Iterable[ProcessIdentity], grace_s: float) -> None:
    """Asks all to end (SIGTERM), ends what is left after `grace_s` (SIGKILL), and returns when all are gone."""
    processes = list(processes)
    with ExitStack() as closing:
        waiting: set[int] = set()
        for process in processes:
            pidfd = open_pidfd(process)
            if pidfd is not None:
                closing.callback(os.close, pidfd)
                waiting.add(pidfd)
        _signal(waiting, signal.SIGTERM)
        waiting -= _ended(waiting, grace_s)
        _signal(waiting, signal.SIGKILL)
        _ended(waiting, grace_s=None)
    for process in processes:
        _reap(process.pid)


def _signal(pidfds: Iterable[int], number: signal.Signals) -> None:
    for pidfd in pidfds:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)


def _ended(pidfds: Iterable[int], grace_s: float | None) -> set[int]:
    """Those that ended within `grace_s`; None waits for all."""
    poll = select.poll()
    waiting = set(pidfds)
    for pidfd in waiting:
        poll.register(pidfd, select.POLLIN)
    ended: set[int] = set()
    deadline_s = None if grace_s is None else monotonic() + grace_s
    while waiting - ended:
        left_s = None if deadline_s is None else deadline_s - monotonic()
        if left_s is not None and left_s <= 0:
            break
        for pidfd, _ in poll.poll(None if left_s is None else left_s * 1000):
            poll.unregister(pidfd)
            ended.add(pidfd)
    return ended


def _reap(pid: int) -> None:
    """Removes the process from the table if it was a child of ours; others are their parents' business."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
