"""`forebay restart`: replaces the services of the local mesh one by one while it serves."""

import asyncio
import sys
from collections.abc import Sequence
from typing import Final

from forebay.cli.parsing import command_parser
from forebay.mesh.local_mesh import DEFAULT_START_TIMEOUT_S
from forebay.mesh.rolling_restart import restart_mesh
from forebay.mesh.state_dir import current_state_dir, locked

_EXAMPLES: Final = """\
  forebay restart                  all that can: workers, and routers and tokenizers of which there are two
  forebay restart decode-0 prefill"""


def run(arguments: Sequence[str]) -> int:
    """0 when all has been replaced."""
    parser = command_parser("restart", "Replaces services of the local mesh one by one; no request is lost.", _EXAMPLES)
    parser.add_argument("services", nargs="*", metavar="SERVICE", help="name or role (default: all that can)")
    parser.add_argument(
        "--timeout-s", type=float, default=DEFAULT_START_TIMEOUT_S, metavar="S", help="of each step (default: 180)"
    )
    given = parser.parse_args(arguments)
    state_dir = current_state_dir()
    with locked(state_dir, lambda: _say("waiting for another forebay up or down to finish")):
        asyncio.run(restart_mesh(state_dir, given.services, _say, given.timeout_s))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
