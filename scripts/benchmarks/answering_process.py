"""A process that measures, loaded once and asked as often as wanted. Knows the protocol of `answering`; no engine."""

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from scripts.benchmarks.generation import ContestantAbsentError

_START_TIMEOUT_S = 900.0
_ANSWER_TIMEOUT_S = 300.0


class AnsweringProcess:
    """One running process and all that it starts.

    Between two questions the whole process group is stopped by a signal: it uses no core while it is idle, whatever
    its threads do while they wait.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Starts it and waits until it is loaded. Raises ContestantAbsentError when it does not get there."""
        self._log = log
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env=environment,
                bufsize=0,
                start_new_session=True,
            )
        self._unread = b""
        self.configuration = str(self._answer(_START_TIMEOUT_S)["ready"])
        self._signal(signal.SIGSTOP)

    def __enter__(self) -> "AnsweringProcess":
        """The process itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the process."""
        self.close()

    def ask(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Lets the process run until it has answered. Raises ContestantAbsentError when it cannot, or is gone."""
        self.begin(command)
        return self.finish()

    def begin(self, command: Mapping[str, Any]) -> None:
        """Asks and does not wait; `finish` must follow. Raises ContestantAbsentError."""
        assert self._process.stdin is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
        except (BrokenPipeError, ValueError):  # it ended, or has been closed
            raise self._lost("ended") from None

    def finish(self) -> dict[str, Any]:
        """The answer to what was begun. Raises ContestantAbsentError."""
        answer = self._answer(_ANSWER_TIMEOUT_S)
        self._signal(signal.SIGSTOP)
        if "error" in answer:
            raise ContestantAbsentError(f"{answer['error']}; log in {self._log}")
        return answer

    def close(self) -> None:
        """Ends the process and all that it started. Harmless when it is gone."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline_s = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline_s - time.monotonic())):
                    raise self._lost(f"gave no answer in {timeout_s:.0f} s")
                read = os.read(self._process.stdout.fileno(), 1 << 16)
                if not read:
                    raise self._lost("ended")
                self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _lost(self, what: str) -> ContestantAbsentError:
        self.close()
        return ContestantAbsentError(f"{what}; log in {self._log}")

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)
