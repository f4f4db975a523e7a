"""A running mesh whose processes are killed with -9 and started again as they were, or stopped and continued.

Knows nothing of requests.
"""

import os
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from forebay.mesh.process import open_pidfd, spawn, stop
from forebay.mesh.readiness import wait_until_ready
from forebay.mesh.record import ServiceRecord, read_record, write_record
from forebay.testing.mesh import RunningMesh


class MortalMesh:
    """Keeps the mesh's record true, so that whoever started the mesh stops all of it."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._mesh = mesh
        self._record = read_record(mesh.state_dir) or mesh.record  # another may have restarted some of it before
        self._start_count = 0

    def name_at(self, address: str) -> str:
        """The service that has this address."""
        return next(service.name for service in self._record.services if service.address == address)

    def address_of(self, name: str) -> str:
        """Where this service listens."""
        return self._service(name).address

    def names_of(self, role: str) -> list[str]:
        """The services of this role."""
        return [service.name for service in self._record.services if service.role == role]

    def kill(self, name: str) -> tuple[str, ...]:
        """Ends the process at once, and returns when it is gone; returns its command line."""
        process = self._service(name).process
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        self._signal(name, signal.SIGKILL)
        stop([process], grace_s=0)
        return tuple(command)

    def freeze(self, name: str) -> None:
        """The process does nothing from now on, and nobody is told."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """It goes on as if no time had passed."""
        self._signal(name, signal.SIGCONT)

    def start(self, name: str, command: tuple[str, ...]) -> None:
        """Starts a killed service again. Its log is another file than before."""
        self._start_count += 1
        log_path = self._mesh.logs_dir / f"{name}-again-{self._start_count}.log"
        started = replace(self._service(name), process=spawn(command, log_path, os.environ))
        services = tuple(started if one.name == name else one for one in self._record.services)
        self._record = replace(self._record, services=services)
        write_record(self._mesh.state_dir, self._record)

    async def until_ready(self, name: str) -> None:
        """Returns when the service welcomes work."""
        service = self._service(name)
        await wait_until_ready(service.role, service.address)

    def _signal(self, name: str, number: signal.Signals) -> None:
        pidfd = open_pidfd(self._service(name).process)
        assert pidfd is not None, f"{name} was not running"
        try:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)

    def _service(self, name: str) -> ServiceRecord:
        return next(service for service in self._record.services if service.name == name)
