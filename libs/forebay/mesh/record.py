"""mesh.json: what runs in a state folder, so that a later command can find, judge and stop it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from forebay.errors import StartError
from forebay.host.process_identity import ProcessIdentity
from forebay.host.whole_file import write_whole
from forebay.mesh.spec import MeshSpec, ServiceSpec

_FILE_NAME: Final = "mesh.json"
_VERSION: Final = 4


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """One process of the mesh."""

    name: str
    role: str
    address: str
    process: ProcessIdentity

    @classmethod
    def of(cls, service: ServiceSpec, process: ProcessIdentity) -> Self:
        """The record of a service that was just started."""
        return cls(service.name, service.role, service.address, process)


@dataclass(frozen=True, slots=True)
class MeshRecord:
    """All that was started. A mesh that is starting, or was interrupted, has fewer services than it should."""

    node_id: str
    model_path: Path
    port_base: int
    router_address: str
    prefill_count: int
    decode_count: int
    chip_class: str | None
    threads: int | None
    device_bytes: int | None
    host_bytes: int | None
    disk_bytes: int | None
    eviction_policy: str | None
    services: tuple[ServiceRecord, ...]
    is_complete: bool
    fleet_file: Path | None = None
    router_count: int = 1
    tokenizer_count: int = 1

    @property
    def router_addresses(self) -> tuple[str, ...]:
        """For `Client(...)` and `AsyncClient(...)`; the first even if no router was started yet."""
        started = (service.address for service in self.services if service.role == "router")
        return tuple(dict.fromkeys((self.router_address, *started)))

    @classmethod
    def of(cls, spec: MeshSpec, services: tuple[ServiceRecord, ...], *, is_complete: bool) -> Self:
        """The record of a mesh of which `services` have been started; complete: all of them, and all were healthy."""
        return cls(
            node_id=spec.node_id,
            model_path=spec.model_path,
            port_base=spec.port_base,
            router_address=spec.router_address,
            prefill_count=spec.prefill_count,
            decode_count=spec.decode_count,
            chip_class=spec.chip_class,
            threads=spec.threads,
            device_bytes=spec.device_bytes,
            host_bytes=spec.host_bytes,
            disk_bytes=spec.disk_bytes,
            eviction_policy=spec.eviction_policy,
            services=services,
            is_complete=is_complete,
            fleet_file=spec.fleet_file,
            router_count=spec.router_count,
            tokenizer_count=spec.tokenizer_count,
        )


def write_record(state_dir: Path, record: MeshRecord) -> None:
    """Replaces the record; a reader never sees half of one."""
    content = {"version": _VERSION, **asdict(record)}
    write_whole(state_dir / _FILE_NAME, (json.dumps(content, indent=1, default=str) + "\n").encode())


def read_record(state_dir: Path) -> MeshRecord | None:
    """The record, or None if nothing was started here.

    Raises StartError for a record that cannot be understood.
    """
    path = state_dir / _FILE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("version") != _VERSION:
            raise StartError(f"{path} was written by another version of forebay; stop that mesh with it first")
        services = tuple(_service(entry) for entry in content.pop("services"))
        paths = {name: Path(content[name]) for name in ("model_path", "fleet_file") if content.get(name) is not None}
        return MeshRecord(**{**content, **paths, "services": services})
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"{path} is damaged; stop the processes named in it by hand, then remove it") from error


def remove_record(state_dir: Path) -> None:
    """Forgets the mesh."""
    (state_dir / _FILE_NAME).unlink(missing_ok=True)


def _service(entry: dict[str, Any]) -> ServiceRecord:
    return ServiceRecord(**{**entry, "process": ProcessIdentity(**entry["process"])})
