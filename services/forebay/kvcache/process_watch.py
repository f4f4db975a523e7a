"""Whether a worker's process can still write: the kernel's word."""

import os
import select
from dataclasses import dataclass

from forebay.host.process_identity import ProcessIdentity
from forebay.kv.attachments import WorkerProcess


@dataclass(frozen=True, slots=True)
class _Handle:
    """Names a process for good, also when its pid is given to another, and is asked in a microsecond."""

    descriptor: int
    readable: select.poll

    @classmethod
    def open(cls, pid: int) -> "_Handle":
        """Of whoever has this pid now. Raises OSError."""
        descriptor, readable = os.pidfd_open(pid), select.poll()
        readable.register(descriptor, select.POLLIN)
        return cls(descriptor, readable)

    def is_running(self) -> bool:
        """False once the last of its threads has ended."""
        return not self.readable.poll(0)


class ProcessWatch:
    """Holds one handle for each process asked about, until that has ended."""

    def __init__(self) -> None:
        self._handles: dict[WorkerProcess, _Handle] = {}

    def is_alive(self, process: WorkerProcess) -> bool:
        """Whether the process runs. A pid that was given to a later process does not count."""
        handle = self._handles.get(process)
        if handle is not None:
            return self._is_running(process, handle)
        self._forget_ended()
        identity = ProcessIdentity(process.pid, process.start_ticks)
        try:
            handle = _Handle.open(process.pid)
        except OSError:  # nobody has this pid, or the sandbox forbids handles
            return identity.is_running()
        if not identity.is_running():
            os.close(handle.descriptor)
            return False
        self._handles[process] = handle
        return True

    def close(self) -> None:
        """Gives all handles up."""
        while self._handles:
            os.close(self._handles.popitem()[1].descriptor)

    def _is_running(self, process: WorkerProcess, handle: _Handle) -> bool:
        if handle.is_running():
            return True
        os.close(handle.descriptor)
        del self._handles[process]
        return False

    def _forget_ended(self) -> None:
        for process, handle in list(self._handles.items()):
            self._is_running(process, handle)
