"""A mesh each of whose processes has an own network namespace, so that its network can be cut like a cable.

A bridge joins them; whoever made the mesh sits at the bridge. A cut takes a process's link down: nothing arrives and
nothing leaves, in neither direction, and nobody is told. Needs Linux, root and `ip`.
"""

import asyncio
import ctypes
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from forebay.mesh.local_mesh import stop_mesh, until_ready
from forebay.mesh.process import spawn
from forebay.mesh.record import MeshRecord, ServiceRecord, write_record
from forebay.mesh.spec import MeshSpec, ServiceSpec
from forebay.mesh.state_dir import locked
from forebay.models.default_model import resolve_model
from forebay.testing.mesh import RunningMesh

_NEW_NETWORK: Final = 0x40000000  # CLONE_NEWNET
_NETWORK: Final = "10.77.0"
_BRIDGE: Final = "fbbridge"
_START_S: Final = 180.0


class CutMesh(RunningMesh):
    """A running mesh with cables."""

    def cut(self, name: str) -> None:
        """Nothing reaches the service from now on, and it reaches nobody."""
        _ip("link", "set", self._cable(name), "down")

    def heal(self, name: str) -> None:
        """As if nothing had been."""
        _ip("link", "set", self._cable(name), "up")

    def _cable(self, name: str) -> str:
        return f"fb{[service.name for service in self.record.services].index(name)}"


def can_cut() -> bool:
    """Whether this process may make network namespaces."""
    if os.geteuid() != 0 or not any(Path(folder, "ip").exists() for folder in ("/usr/sbin", "/sbin", "/usr/bin")):
        return False
    tried = subprocess.run(
        ["/usr/bin/env", "unshare", "-n", "ip", "link", "add", "fbtest", "type", "veth", "peer", "name", "fbtest2"],
        capture_output=True,
        check=False,
    )
    return tried.returncode == 0


def enter_own_network() -> None:
    """Moves this thread, and all that it starts from now on, into a network of its own: call it before all else."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NETWORK) != 0:
        raise OSError(ctypes.get_errno(), "no network of its own")
    _ip("link", "set", "lo", "up")
    _ip("link", "add", _BRIDGE, "type", "bridge")
    _ip("addr", "add", f"{_NETWORK}.1/24", "dev", _BRIDGE)
    _ip("link", "set", _BRIDGE, "up")


@contextmanager
def cut_mesh(**options: Any) -> Iterator[CutMesh]:
    """Of `MeshSpec`'s options. `enter_own_network` first."""
    with tempfile.TemporaryDirectory(prefix="forebay-") as temporary, ExitStack() as closing:
        folder = Path(temporary)
        (folder / "logs").mkdir()
        spec = MeshSpec(
            model_path=resolve_model(None).absolute(), state_dir=folder, name=f"cut{os.getpid()}", **options
        )
        services = spec.services()
        addresses = {one.address: f"{_NETWORK}.{10 + index}" for index, one in enumerate(services)}
        with locked(folder):
            closing.callback(stop_mesh, folder)
            started = []
            for index, service in enumerate(services):
                started.append(_start(index, _moved(service, addresses), folder))
                write_record(folder, MeshRecord.of(spec, tuple(started), is_complete=False))
                closing.callback(_remove_namespace, index)
            router = next(one.address for one in started if one.role == "router")
            record = replace(MeshRecord.of(spec, tuple(started), is_complete=True), router_address=router)
            write_record(folder, record)
            asyncio.run(until_ready(record.services, folder / "logs", lambda line: None, _START_S))
        yield CutMesh(record, folder)


def _moved(service: ServiceSpec, hosts: dict[str, str]) -> ServiceSpec:
    """The same service where each address is of a machine of its own."""

    def moved(part: str) -> str:
        for address, host in hosts.items():
            port = address.rpartition(":")[2]
            part = re.sub(rf"127\.0\.0\.1:{port}\b", f"{host}:{port}", part)
        return part

    command = [moved(part) for part in service.command]
    own = hosts[service.address]
    command = [own if part == "127.0.0.1" else part for part in command]  # NATS names its host apart
    return ServiceSpec(service.name, service.role, moved(service.address), tuple(command))


def _start(index: int, service: ServiceSpec, folder: Path) -> ServiceRecord:
    namespace, host = _namespace(index), service.address.rpartition(":")[0]
    with suppress(subprocess.CalledProcessError):
        _ip("netns", "del", namespace)
    _ip("netns", "add", namespace)
    _ip("link", "add", f"fb{index}", "type", "veth", "peer", "name", f"fbp{index}")
    _ip("link", "set", f"fbp{index}", "netns", namespace)
    _ip("link", "set", f"fb{index}", "master", _BRIDGE)
    _ip("link", "set", f"fb{index}", "up")
    inside = ("netns", "exec", namespace, "ip")
    _ip(*inside, "link", "set", "lo", "up")
    _ip(*inside, "addr", "add", f"{host}/24", "dev", f"fbp{index}")
    _ip(*inside, "link", "set", f"fbp{index}", "up")
    log_path = folder / "logs" / f"{service.name}.log"
    process = spawn(("/usr/bin/env", "ip", "netns", "exec", namespace, *service.command), log_path, os.environ)
    return ServiceRecord.of(service, process)


def _remove_namespace(index: int) -> None:
    with suppress(subprocess.CalledProcessError):
        _ip("netns", "del", _namespace(index))


def _namespace(index: int) -> str:
    return f"forebay-{os.getpid()}-{index}"


def _ip(*arguments: str) -> None:
    subprocess.run(["/usr/bin/env", "ip", *arguments], check=True, capture_output=True)  # noqa: S603  # of this file
