"""`forebay down`: stops the local mesh."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from forebay.cli.parsing import command_parser
from forebay.cli.program import program_name
from forebay.mesh.inspection import running_request_count
from forebay.mesh.local_mesh import DRAIN_S, stop_mesh
from forebay.mesh.record import MeshRecord, read_record
from forebay.mesh.state_dir import current_state_dir, elsewhere, locked

_EXAMPLES: Final = """\
  forebay down
  FOREBAY_STATE_DIR=/srv/forebay forebay down"""


def run(arguments: Sequence[str]) -> int:
    """Stops everything that was started in the state folder; does nothing if that is nothing."""
    parser = command_parser("down", "Stops the local mesh; no process or shared memory is left.", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print what was stopped as JSON")
    given = parser.parse_args(arguments)
    state_dir = current_state_dir()
    record = _stop(state_dir) if state_dir.is_dir() else None
    if given.json:
        stopped = [] if record is None else [service.name for service in record.services]
        print(json.dumps({"stopped": stopped, "state_dir": str(state_dir)}))
    elif record is None:
        _say(f"nothing to stop: no mesh was started in {state_dir}; {elsewhere(f'{program_name()} down')}")
    else:
        names = ", ".join(service.name for service in record.services)
        _say(f"stopped {names}; no process and no shared memory is left")
    return 0


def _stop(state_dir: Path) -> MeshRecord | None:
    with locked(state_dir, lambda: _say("waiting for another forebay up or down to finish")):
        record = read_record(state_dir)
        if record is not None and (count := running_request_count(record)):
            _say(f"waiting for {count} running request{'s' if count > 1 else ''}, at most {DRAIN_S:g} s")
        return stop_mesh(state_dir)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
