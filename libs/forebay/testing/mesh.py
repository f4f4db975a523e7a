"""A whole mesh for the time of a `with` block, for tests and benchmarks: real processes, ports of its own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.mesh.local_mesh import start_mesh, stop_mesh
from forebay.mesh.port import free_port_base
from forebay.mesh.record import MeshRecord
from forebay.mesh.spec import MeshSpec
from forebay.mesh.state_dir import locked
from forebay.models.default_model import resolve_model

_FIRST_PORT_BASE = 17_400


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """A mesh that is up and healthy."""

    record: MeshRecord
    state_dir: Path

    @property
    def router_address(self) -> str:
        """For `Client(...)` and `AsyncClient(...)`."""
        return self.record.router_address

    @property
    def router_addresses(self) -> tuple[str, ...]:
        """All routers, for the same."""
        return self.record.router_addresses

    @property
    def logs_dir(self) -> Path:
        """Has one file NAME.log per service."""
        return self.state_dir / "logs"

    def address_of(self, name: str) -> str:
        """Address of a service by its name, such as "kvcache" or "decode-0"."""
        return next(service.address for service in self.record.services if service.name == name)

    def pid_of(self, name: str) -> int:
        """Process id of a service by its name."""
        return next(service.process.pid for service in self.record.services if service.name == name)


@contextmanager
def running_mesh(*, model: str | None = None, state_dir: Path | None = None, **options: Any) -> Iterator[RunningMesh]:
    """A mesh of its own, stopped and removed at the end.

    Args:
        model: GGUF file or Hugging Face folder; None: the default model.
        state_dir: where records, logs and spans go; None: a temporary folder.
        options: further fields of `MeshSpec`, such as `decode_count=2`.

    Raises:
        StartError: the mesh cannot be started, or something is left of it at the end.
    """
    model_path = resolve_model(model)
    with tempfile.TemporaryDirectory(prefix="forebay-") as temporary:
        folder = Path(temporary) if state_dir is None else state_dir
        options.setdefault("port_base", free_port_base(_FIRST_PORT_BASE))
        spec = MeshSpec(model_path=model_path.absolute(), state_dir=folder.absolute(), **options)
        with locked(folder):
            record = start_mesh(spec, lambda line: None)
        try:
            yield RunningMesh(record, folder)
        finally:
            with locked(folder):
                stop_mesh(folder)
