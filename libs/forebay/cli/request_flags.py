"""Flags that say how tokens are chosen and how a request is treated; each is the SDK's option of the same name."""

import argparse
from typing import cast

from forebay.client import RequestOptions

_SAMPLING: dict[str, tuple[type, str]] = {
    "max_tokens": (int, "most tokens to generate (default: 512)"),
    "temperature": (float, "0 is greedy and repeatable (default: 0)"),
    "top_p": (float, "only the likeliest tokens that together have this probability (default: 1, off)"),
    "top_k": (int, "only the K likeliest tokens (default: 0, off)"),
    "min_p": (float, "least probability relative to the likeliest token (default: 0, off)"),
    "repetition_penalty": (float, "> 1 makes seen tokens less likely (default: 1, off)"),
    "presence_penalty": (float, "subtracted once from the logit of each generated token (default: 0)"),
    "frequency_penalty": (float, "subtracted for each time a token was generated (default: 0)"),
    "seed": (int, "makes sampling repeatable (default: random)"),
    "logprobs": (int, "log-probabilities of the chosen tokens and this many others, 0..20; shown by --json"),
}
_DEFAULTS: dict[str, float] = {"max_tokens": 512, "temperature": 0.0}
_TREATMENT: dict[str, str] = {
    "model": "model name (default: the one that is served)",
    "tenant": "who asks; prefixes are shared only within a tenant",
    "session": "conversations that belong together; taken, but it changes nothing yet",
    "cache_salt": "keeps this request's cached prefixes apart",
    "request_id": "name of the request (default: the router makes one)",
}


def add_request_flags(parser: argparse.ArgumentParser) -> None:
    """Adds all flags.

    For a person at a terminal: the likeliest answer and an end, where the API's own defaults are the model's whole
    distribution and its whole context. What else is not said is the router's to choose.
    """
    sampling = parser.add_argument_group("how tokens are chosen")
    for name, (kind, text) in _SAMPLING.items():
        default = _DEFAULTS.get(name)
        sampling.add_argument(_flag(name), type=kind, default=default, metavar=_letter(kind), help=text)
    sampling.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    sampling.add_argument(
        "--stop-token-id",
        action="append",
        type=int,
        dest="stop_token_ids",
        metavar="N",
        help="end after this token of the vocabulary",
    )
    sampling.add_argument("--ignore-eos", action="store_const", const=True, help="go on after end-of-sequence tokens")
    treatment = parser.add_argument_group("how the request is treated")
    for name, text in _TREATMENT.items():
        treatment.add_argument(_flag(name), metavar="TEXT", help=text)
    treatment.add_argument(
        "--qos-tier",
        choices=("realtime", "batch", "backup"),
        help="urgency; batch waits behind realtime, backup has a worker to itself (default: realtime)",
    )
    treatment.add_argument(
        "--time-to-first-token-ms",
        type=int,
        metavar="N",
        help="refuse it rather than miss this (default: try for 500, refuse nothing)",
    )
    treatment.add_argument(
        "--time-per-output-token-ms", type=int, metavar="N", help="likewise, for each further token (default: 50)"
    )
    treatment.add_argument(
        "--accepts-miss",
        action="store_const",
        const=True,
        help="serve it though these are predicted to be missed",
    )
    treatment.add_argument("--mode", choices=("local", "split"), help="force who computes the prompt; for tests")
    treatment.add_argument(
        "--hedge-after-s",
        type=float,
        metavar="S",
        help="ask a second router, of several, if no token has come by then (default: never)",
    )
    treatment.add_argument("--timeout-s", type=float, metavar="S", help="seconds the request may take (default: 600)")


def request_options(arguments: argparse.Namespace) -> RequestOptions:
    """The SDK's options from parsed flags."""
    given = {name: value for name, value in vars(arguments).items() if name in RequestOptions.__annotations__}
    return cast("RequestOptions", given)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _letter(kind: type) -> str:
    return "N" if kind is int else "X"
