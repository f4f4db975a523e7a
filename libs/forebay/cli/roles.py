"""`forebay roles`: how many workers should prefill and how many decode, and switching them."""

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from forebay.cli.parsing import command_parser
from forebay.cli.target import add_target_flag, target_of
from forebay.client import Client
from forebay.errors import StartError
from forebay.mesh.local_mesh import DEFAULT_START_TIMEOUT_S
from forebay.mesh.record import read_record
from forebay.mesh.rolling_restart import switch_role
from forebay.mesh.state_dir import current_state_dir, locked
from forebay.routing.role_advice import Recommendation, SplitForecast

_EXAMPLES: Final = """\
  forebay roles                             what was asked lately, each split of the workers, and which is worth having
  forebay roles --first-token-ms 200        for a tighter target
  forebay roles --apply                     and switch workers of the local mesh accordingly
  forebay roles prefill-1 --to decode       switch one, whatever is advised

A worker that is switched is replaced by a process of the other role; then it drains: what it generates goes on at
another worker of its node with its KV, and no request is lost. The last worker of a role stays."""


def run(arguments: Sequence[str]) -> int:
    """0 when it was shown, and done where that was asked."""
    parser = command_parser("roles", "Says how many workers should prefill and decode, and switches them.", _EXAMPLES)
    parser.add_argument("service", nargs="?", metavar="SERVICE", help="worker of the local mesh to switch")
    parser.add_argument("--to", choices=("prefill", "decode"), help="role that SERVICE is to have")
    parser.add_argument("--apply", action="store_true", help="switch what is advised; one worker after the other")
    parser.add_argument("--first-token-ms", type=float, default=500.0, metavar="MS", help="target (default: 500)")
    parser.add_argument("--token-ms", type=float, default=50.0, metavar="MS", help="target (default: 50)")
    parser.add_argument(
        "--timeout-s", type=float, default=DEFAULT_START_TIMEOUT_S, metavar="S", help="of each switch (default: 180)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_target_flag(parser)
    given = parser.parse_args(arguments)
    if (given.service is None) != (given.to is None):
        parser.error("SERVICE and --to go together: forebay roles prefill-1 --to decode")
    if given.service is not None:
        if given.apply:
            parser.error("--apply switches what is advised; leave SERVICE out")
        switched = _switch([(given.service, given.to)], given)
        if given.json:
            print(json.dumps({"switched": switched}))
        return 0
    with Client(target_of(given)) as client:
        advice = client.advise_roles(
            time_to_first_token_s=given.first_token_ms / 1e3, time_per_output_token_s=given.token_ms / 1e3
        )
        names = _names({one.worker_id: one.address for one in client.fleet().members})
    if not given.json:
        _show(advice, names)
    switched = {}
    if given.apply and advice.switches:
        unknown = [worker_id for worker_id, _ in advice.switches if worker_id not in names]
        if unknown:
            raise StartError(f"{unknown[0]} is not of the local mesh; switch it where it was started")
        switched = _switch([(names[worker_id], role.value) for worker_id, role in advice.switches], given)
    if given.json:
        print(json.dumps({**_as_json(advice, names), "switched": switched}, indent=2))
    return 0


def _switch(switches: Sequence[tuple[str, str]], given: argparse.Namespace) -> dict[str, str]:
    """The new names by the old ones."""
    state_dir = current_state_dir()
    with locked(state_dir, lambda: _say("waiting for another forebay up or down to finish")):
        return {name: asyncio.run(switch_role(state_dir, name, role, _say, given.timeout_s)) for name, role in switches}


def _names(addresses: dict[str, str]) -> dict[str, str]:
    """The local mesh's names of workers, by id."""
    record = read_record(current_state_dir())
    of_address = {one.address: one.name for one in record.services} if record else {}
    return {worker_id: of_address[address] for worker_id, address in addresses.items() if address in of_address}


def _show(advice: Recommendation, names: dict[str, str]) -> None:
    demand = advice.demand
    print(
        f"last {demand.seconds:.0f} s: {demand.requests} requests ({demand.requests_per_s:.1f}/s) of"
        f" {demand.tokens_per_prompt:.0f} prompt tokens ({demand.cached_per_prompt:.0f} cached);"
        f" {demand.answers} answers of {demand.tokens_per_answer:.0f} tokens"
    )
    print(f"{'prefill:decode':<16}{'prefill busy':>14}{'decode busy':>13}{'first token':>14}{'token':>11}")
    for one in advice.splits:
        mark = " now" if one.name == advice.now.name else " advised" if one.name == advice.best.name else ""
        print(
            f"{one.name:<16}{one.prefill_busy:>13.0%} {one.decode_busy:>12.0%} {_ms(one.time_to_first_token_s):>13}"
            f" {_ms(one.time_per_output_token_s):>10}{mark}"
        )
    print(advice.reason)
    for worker_id, role in advice.switches:
        print(f"  switch {names.get(worker_id, worker_id)} to {role.value}")


def _as_json(advice: Recommendation, names: dict[str, str]) -> dict[str, Any]:
    return {
        "demand": advice.demand._asdict(),
        "now": _split(advice.now),
        "best": _split(advice.best),
        "splits": [_split(one) for one in advice.splits],
        "switches": [
            {"worker_id": worker_id, "service": names.get(worker_id), "to": role.value}
            for worker_id, role in advice.switches
        ],
        "reason": advice.reason,
    }


def _split(one: SplitForecast) -> dict[str, Any]:
    """JSON knows no infinity: null means that work comes faster than it is done."""
    times = {"time_to_first_token_s", "pressure"}
    return {name: None if name in times and value == float("inf") else value for name, value in one._asdict().items()}


def _ms(seconds: float) -> str:
    return "without end" if seconds == float("inf") else f"{seconds * 1e3:.0f} ms"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
