"""`forebay explain`: why a request was planned as it was, and what it was preferred to."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from forebay.cli.parsing import command_parser
from forebay.cli.target import add_target_flag, target_of
from forebay.client import Client, Plan

_EXAMPLES: Final = """\
  forebay explain 4cacd7b80a5e4c3f8d1b7f60a2c9e1d4
  forebay explain 4cacd7b80a5e4c3f8d1b7f60a2c9e1d4 --json | jq .chosen.prediction

A request's id is in `generate --json` as request_id, and in the second line of `trace ID`."""


def run(arguments: Sequence[str]) -> int:
    """Prints the plan that was made and the best one that was not."""
    parser = command_parser("explain", "Says why one of the router's last requests was planned as it was.", _EXAMPLES)
    parser.add_argument("request_id", metavar="REQUEST_ID", help="id of the request")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_target_flag(parser)
    given = parser.parse_args(arguments)
    with Client(target_of(given)) as client:
        explanation = client.explain(given.request_id)
    if given.json:
        print(json.dumps(asdict(explanation), indent=2))
        return 0
    print("\n".join(_lines("chosen", explanation.chosen)))
    if explanation.rejected is not None:
        print("\n".join(_lines("rejected", explanation.rejected)))
    return 0


def _lines(what: str, plan: Plan) -> list[str]:
    lines = [f"{what:<9} {plan.reason}"]
    if plan.prediction is None:
        return [*lines, "          without figures: no worker had told its rates"]
    figures = plan.prediction
    transfer = f" + transfer {_ms(figures.transfer_s)}" if figures.transfer_s > 0 else ""
    messages_s = figures.time_to_first_token_s - figures.queue_s - figures.prefill_s - figures.transfer_s
    return [
        *lines,
        f"          first token {_ms(figures.time_to_first_token_s)} = queue {_ms(figures.queue_s)}"
        f" + prefill {_ms(figures.prefill_s)}{transfer} + messages {_ms(max(0.0, messages_s))}",
        f"          then {_ms(figures.time_per_output_token_s)} a token;"
        f" {figures.energy_joules:.3g} J, {figures.cost_usd:.3g} USD in all",
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
