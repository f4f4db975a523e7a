"""Whether the ports of a mesh are free, and who has them if not."""

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import psutil

from forebay import ports
from forebay.errors import StartError
from forebay.mesh.spec import DEFAULT_PORT_BASE, MeshSpec

_BASE_STEP: Final = 100


def check_ports(spec: MeshSpec) -> None:
    """Raises StartError with one line about the first port that is taken."""
    for service in spec.services():
        port = int(service.address.rpartition(":")[2])
        if not _is_free(port):
            raise StartError(
                f"port {port} ({service.name}) is taken{_holder(port)}; stop that program or "
                f"choose other ports, for example --port-base {free_port_base(spec.port_base + _BASE_STEP)}"
            )


def free_port_base(first: int = DEFAULT_PORT_BASE + _BASE_STEP) -> int:
    """A base, `first` or above in steps of 100, whose whole range of ports is free at this moment."""
    for base in range(first, 60_000, _BASE_STEP):
        if all(map(_is_free, _range_of(base))):
            return base
    raise StartError(f"no free range of ports from {first} up; name one with --port-base")


def _range_of(base: int) -> Iterable[int]:
    return (*range(base, base + 30), base + ports.NATS)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a connection of an ended server that still lingers does not make the port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def _holder(port: int) -> str:
    """By whom the port is taken, if the system tells."""
    with suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            local: Any = connection.laddr  # an empty tuple for sockets without an address
            if connection.status == psutil.CONN_LISTEN and local.port == port and connection.pid is not None:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""
