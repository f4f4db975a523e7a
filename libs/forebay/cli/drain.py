"""`forebay drain`: takes a worker out of service without losing what it runs."""

import json
import sys
from collections.abc import Sequence
from time import monotonic, sleep
from typing import Final

from forebay.cli.parsing import command_parser
from forebay.cli.target import add_target_flag, target_of
from forebay.client import Client
from forebay.errors import DeadlineExceededError, UnknownWorkerError
from forebay.mesh.record import read_record
from forebay.mesh.state_dir import current_state_dir

_EXAMPLES: Final = """\
  forebay drain decode-1
  forebay drain local-7400-decode-5b1c0a9e --no-wait --json

A decode worker's sequences go on at another of its node, which takes over their KV and computes nothing again. What a
prefill worker computes it ends. Then its process ends with exit code 0."""
_ASKED_EVERY_S: Final = 0.1


def run(arguments: Sequence[str]) -> int:
    """Returns 0 when the worker has left the fleet, or has begun to drain with --no-wait."""
    parser = command_parser("drain", "Takes a prefill or decode worker out of service; no request is lost.", _EXAMPLES)
    parser.add_argument("worker", metavar="WORKER", help="worker id, or the name of a service of the local mesh")
    parser.add_argument("--force", action="store_true", help="also if it is the last worker of its role")
    for flag, is_waiting in (("--wait", True), ("--no-wait", False)):
        what = "return when it has left the fleet (default)" if is_waiting else "return when it has begun"
        parser.add_argument(flag, dest="wait", action="store_const", const=is_waiting, default=True, help=what)
    parser.add_argument("--timeout-s", type=float, default=60.0, metavar="S", help="of the wait (default: 60)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_target_flag(parser)
    given = parser.parse_args(arguments)
    began_s = monotonic()
    with Client(target_of(given)) as client:
        worker_id = _worker_id(client, given.worker)
        running = client.drain(worker_id, force=given.force)
        if not given.json:
            print(f"{worker_id} drains; it has {running} sequence{'' if running == 1 else 's'}", file=sys.stderr)
        if given.wait:
            _wait_until_gone(client, worker_id, given.timeout_s)
    drained_s = monotonic() - began_s if given.wait else None
    if given.json:
        print(json.dumps({"worker_id": worker_id, "running_sequences": running, "drained_s": drained_s}))
    elif drained_s is not None:
        print(f"{worker_id} has ended after {drained_s:.1f} s", file=sys.stderr)
    return 0


def _worker_id(client: Client, named: str) -> str:
    """The id of a service of the local mesh that is named, else the name itself."""
    record = read_record(current_state_dir())
    address = next((one.address for one in record.services if one.name == named), None) if record else None
    if address is None:
        return named
    member = next((one for one in client.fleet().members if one.address == address), None)
    if member is None:
        raise UnknownWorkerError(f"{named} is not in the fleet", field="worker_id")
    return member.worker_id


def _wait_until_gone(client: Client, worker_id: str, timeout_s: float) -> None:
    ends_s = monotonic() + timeout_s
    while worker_id in {one.worker_id for one in client.fleet().members}:
        if monotonic() >= ends_s:
            raise DeadlineExceededError(f"{worker_id} still drains after {timeout_s:g} s")
        sleep(_ASKED_EVERY_S)
