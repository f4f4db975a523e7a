"""Detached processes: recognised later, never mistaken for another, ended for certain."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from forebay.host.process_identity import ProcessIdentity
from forebay.mesh.process import open_pidfd, spawn, stop

WILLING = "import signal; signal.pause()"
DEAF = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); signal.pause()"
Start = Callable[..., ProcessIdentity]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[ProcessIdentity] = []

    def starting(program: str, **environment: str) -> ProcessIdentity:
        log_path = tmp_path / f"{len(started)}.log"
        started.append(spawn([sys.executable, "-c", program], log_path, {**os.environ, **environment}))
        return started[-1]

    yield starting
    stop(started, grace_s=0)


def _wait_for_words(log_path: Path) -> str:
    """The log, once it has a whole line."""
    while not (words := log_path.read_text()).endswith("\n"):
        os.sched_yield()
    return words


def test_it_runs_detached_with_its_output_in_the_log(start: Start, tmp_path: Path) -> None:
    log_path = tmp_path / "0.log"
    log_path.write_text("old words\n" * 100)
    program = "import os, sys; print(os.environ['WORD'], os.getsid(0) == os.getpid(), sys.stdin.read(), sep='|')"
    process = start(program, WORD="hello")
    pidfd = os.pidfd_open(process.pid)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    os.close(pidfd)
    assert log_path.read_text() == "hello|True|\n"
    assert not process.is_running()  # a zombie: ended, though still in the process table
    assert open_pidfd(process) is None


def test_stop_ends_the_willing_and_the_deaf(start: Start, tmp_path: Path) -> None:
    willing, deaf = start(WILLING), start(DEAF)
    _wait_for_words(tmp_path / "1.log")
    assert willing.is_running()
    assert deaf.is_running()
    stop([willing, deaf], grace_s=0.1)
    assert not willing.is_running()
    assert not deaf.is_running()
    with pytest.raises(ProcessLookupError):  # reaped as well
        os.kill(deaf.pid, 0)
    stop([willing, deaf], grace_s=0.1)


def test_a_reused_pid_is_never_signalled(start: Start) -> None:
    other = start(WILLING)
    stale = replace(other, start_ticks=other.start_ticks - 1)
    assert not stale.is_running()
    assert open_pidfd(stale) is None
    stop([stale], grace_s=0)
    assert other.is_running()


def test_a_pid_that_nobody_has_is_gone(start: Start) -> None:
    process = start("pass")
    os.waitpid(process.pid, 0)
    assert not process.is_running()
    assert open_pidfd(process) is None
    stop([process], grace_s=1)


def test_signals_that_the_shell_ignored_work_again(start: Start) -> None:
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(WILLING)
    finally:
        signal.signal(signal.SIGINT, handler)
    os.kill(process.pid, signal.SIGINT)
    pidfd = os.pidfd_open(process.pid)
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT)
    finally:
        os.close(pidfd)
    assert not process.is_running()


def test_a_program_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        spawn([str(tmp_path / "absent")], tmp_path / "log", {})
