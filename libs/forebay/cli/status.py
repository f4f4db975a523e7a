"""`forebay status`: how the services of the local mesh are."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from forebay.cli.parsing import command_parser
from forebay.cli.program import program_name
from forebay.errors import StartError
from forebay.mesh.inspection import ServiceStatus, inspect_mesh
from forebay.mesh.memory import TierMemory, occupied_bytes, tier_memory
from forebay.mesh.record import MeshRecord, read_record
from forebay.mesh.state_dir import current_state_dir, elsewhere

_EXAMPLES: Final = """\
  forebay status
  forebay status --json | jq '.services[].health'"""
_HEADER: Final = ("service", "pid", "address", "health", "pss", "rss", "load")
_MIB: Final = 1 << 20


def run(arguments: Sequence[str]) -> int:
    """Prints a table or JSON; 0 if every service is healthy, else 1."""
    parser = command_parser(
        "status", "Shows each service of the local mesh; exit code 1 if one is not healthy.", _EXAMPLES
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    state_dir = current_state_dir()
    record = read_record(state_dir)
    if record is None and not given.json:
        program = program_name()
        raise StartError(f"no mesh runs in {state_dir}; start one: {program} up; {elsewhere(f'{program} status')}")
    statuses = [] if record is None else inspect_mesh(record)
    is_healthy = record is not None and record.is_complete and all(status.is_healthy for status in statuses)
    if given.json:
        print(json.dumps({"healthy": is_healthy, **_as_json(record, statuses)}, indent=2))
    elif record is not None:
        print(_as_table(record, statuses))
    if record is not None and not is_healthy and not given.json:
        print(f"not all services are healthy; this starts them again: {program_name()} up", file=sys.stderr)
    return 0 if is_healthy else 1


def _as_json(record: MeshRecord | None, statuses: list[ServiceStatus]) -> dict[str, Any]:
    if record is None:
        return {"mesh": None, "services": [], "shared_memory": [], "occupied_bytes": 0}
    return {
        "mesh": {"node_id": record.node_id, "model": str(record.model_path)},
        "services": [_flat(asdict(one)) for one in statuses],
        "shared_memory": [asdict(one) for one in tier_memory(record.node_id)],
        "occupied_bytes": _occupied_bytes(record, statuses),
    }


def _flat(service: dict[str, Any]) -> dict[str, Any]:
    """The service with what is known of its memory beside its other facts."""
    memory: dict[str, Any] = service.pop("memory")
    return {**service, **memory}


def _as_table(record: MeshRecord, statuses: list[ServiceStatus]) -> str:
    rows = [_HEADER, *map(_row, statuses), *map(_tier_row, tier_memory(record.node_id)), _total(record, statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(status: ServiceStatus) -> tuple[str, ...]:
    load = status.load
    busy = "" if load is None else f"{load.running_sequences} running, {load.queued_sequences} waiting"
    memory = (_mib(status.memory.pss_bytes), _mib(status.memory.rss_bytes))
    return (status.name, str(status.pid), status.address, status.health, *memory, busy)


def _tier_row(memory: TierMemory) -> tuple[str, ...]:
    return (f"{memory.tier} tier", "", memory.path, "", _mib(memory.size_bytes), "", "shared memory")


def _total(record: MeshRecord, statuses: list[ServiceStatus]) -> tuple[str, ...]:
    """Less than the sum of the rows: what processes have touched of the tiers stands in their rows as well."""
    return ("all", "", "", "", _mib(_occupied_bytes(record, statuses)), "", "each page once")


def _occupied_bytes(record: MeshRecord, statuses: list[ServiceStatus]) -> int:
    return occupied_bytes(record.node_id, (status.memory for status in statuses))


def _mib(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / _MIB:.0f} MiB"
