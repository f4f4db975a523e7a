"""Whether a worker's process can still write: not "no" while one of its threads could, not "yes" for a reused pid."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.host.process_identity import ProcessIdentity
from forebay.kv.attachments import WorkerProcess
from forebay.kvcache.process_watch import ProcessWatch

LIVES_ON_WITHOUT_ITS_FIRST_THREAD = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("up", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def worker_process(child: "subprocess.Popen[bytes]") -> WorkerProcess:
    return WorkerProcess("w", child.pid, ProcessIdentity.of(child.pid).start_ticks)


def start(*command: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that ends when its input does."""
    with start("cat") as process:
        yield process
        process.kill()


@pytest.fixture
def watch() -> Iterator[ProcessWatch]:
    watch = ProcessWatch()
    yield watch
    watch.close()


def test_a_running_process_is_alive_until_it_is_killed(watch: ProcessWatch, child: "subprocess.Popen[bytes]") -> None:
    process = worker_process(child)
    assert [watch.is_alive(process), watch.is_alive(process)] == [True, True]

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie

    assert [watch.is_alive(process), watch.is_alive(process)] == [False, False]


def test_a_later_process_with_its_pid_does_not_count(watch: ProcessWatch, child: "subprocess.Popen[bytes]") -> None:
    process = worker_process(child)

    assert not watch.is_alive(WorkerProcess("w", process.pid, process.start_ticks - 1))


def test_a_process_that_nobody_knows_is_not_alive(watch: ProcessWatch, child: "subprocess.Popen[bytes]") -> None:
    process = worker_process(child)
    child.kill()
    child.wait()

    assert not watch.is_alive(process)


def test_threads_that_outlive_the_first_one_count(watch: ProcessWatch) -> None:
    with start(sys.executable, "-c", LIVES_ON_WITHOUT_ITS_FIRST_THREAD) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        process = worker_process(child)
        assert watch.is_alive(process)
        child.stdout.readline()
        deadline_s = time.monotonic() + 30
        while _state(child.pid) != b"Z":
            assert time.monotonic() < deadline_s

        assert watch.is_alive(process)

        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not watch.is_alive(process)


def test_ended_processes_leave_no_handles(watch: ProcessWatch) -> None:
    def handles() -> int:
        # Of processes alone: what earlier tests left behind is closed whenever it pleases their libraries' threads.
        links = (path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
        return sum("pidfd" in link.name for link in links)

    before = handles()
    for _ in range(5):
        with start("cat") as child:
            assert watch.is_alive(worker_process(child))
            child.kill()
    with start("cat") as last:
        watch.is_alive(worker_process(last))
        watch.close()
        last.kill()

    assert handles() == before


def test_where_handles_are_forbidden_the_process_table_is_read(
    watch: ProcessWatch, child: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(pid: int) -> int:
        raise PermissionError(pid)

    monkeypatch.setattr(os, "pidfd_open", refuse)
    process = worker_process(child)
    assert watch.is_alive(process)

    child.kill()
    child.wait()
    assert not watch.is_alive(process)


def _state(pid: int) -> bytes:
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
