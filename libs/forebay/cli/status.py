"""`forebay status`: how the services of the local mesh are."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from forebay.cli.parsing import command_parser
from forebay.cli.program import program_name
from forebay.errors import StartError
from forebay.mesh.inspection import ServiceStatus, inspect_mesh
from forebay.mesh.record import MeshRecord, read_record
from forebay.mesh.state_dir import current_state_dir

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
        raise StartError(f"no mesh runs in {state_dir}; start one: {program_name()} up")
    statuses = [] if record is None else inspect_mesh(record)
    is_healthy = record is not None and record.is_complete and all(status.is_healthy for status in statuses)
    print(_as_json(record, statuses, is_healthy=is_healthy) if given.json else _as_table(statuses))
    if record is not None and not is_healthy and not given.json:
        print(f"not all services are healthy; this starts them anew: {program_name()} up", file=sys.stderr)
    return 0 if is_healthy else 1


def _as_json(record: MeshRecord | None, statuses: list[ServiceStatus], *, is_healthy: bool) -> str:
    mesh = None if record is None else {"node_id": record.node_id, "model": str(record.model_path)}
    return json.dumps({"healthy": is_healthy, "mesh": mesh, "services": [asdict(one) for one in statuses]}, indent=2)


def _as_table(statuses: list[ServiceStatus]) -> str:
    rows = [_HEADER, *map(_row, statuses), _total(statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(status: ServiceStatus) -> tuple[str, ...]:
    load = status.load
    busy = "" if load is None else f"{load.running_sequences} running, {load.queued_sequences} waiting"
    memory = (_mib(status.pss_bytes), _mib(status.rss_bytes))
    return (status.name, str(status.pid), status.address, status.health, *memory, busy)


def _total(statuses: list[ServiceStatus]) -> tuple[str, ...]:
    """Shared pages count once in the sum of PSS, so only that sum is shown."""
    total_bytes = sum(status.pss_bytes or 0 for status in statuses)
    return ("all", "", "", "", _mib(total_bytes), "", "")


def _mib(size_bytes: int | None) -> str:
    return "-" if size_bytes is None else f"{size_bytes / _MIB:.0f} MiB"
