"""Runs one benchmark by name."""

import argparse
from pathlib import Path

from forebay.engine.openmp import spin_briefly

spin_briefly()  # as workers do; torch, which the benchmarks import, reads it once

from scripts.benchmarks import (  # noqa: E402
    accuracy,
    cancels,
    convert,
    cuts,
    disk,
    drain,
    engine,
    goodput,
    kills,
    kv,
    kv_core,
    kv_hit_rates,
    mesh,
    roles,
    route,
    router,
    sharing,
    startup,
    tiers,
    torch_compile,
    transfer,
)
from scripts.benchmarks.options import Options  # noqa: E402
from scripts.benchmarks.peer_packages import PEERS  # noqa: E402

BENCHMARKS = {
    "startup": startup,
    "mesh": mesh,
    "engine": engine,
    "accuracy": accuracy,
    "sharing": sharing,
    "convert": convert,
    "disk": disk,
    "torch_compile": torch_compile,
    "transfer": transfer,
    "kv": kv,
    "tiers": tiers,
    "kv_core": kv_core,
    "hit_rates": kv_hit_rates,
    "kills": kills,
    "cuts": cuts,
    "cancels": cancels,
    "goodput": goodput,
    "drain": drain,
    "roles": roles,
    "route": route,
    "router": router,
}
_ROUNDS_OF = {"kills": 34, "goodput": 3, "cancels": 125}
_PEERS_OF = {"engine": tuple(PEERS), "accuracy": ("llama.cpp",)}


def main() -> None:
    """Runs the benchmark named on the command line."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measures, prints a table with the machine, writes .bench/NAME.json."
    )
    commands = parser.add_subparsers(
        dest="name", metavar="NAME", required=True, help="scripts/bench NAME --help says more"
    )
    for name, module in BENCHMARKS.items():
        text = module.__doc__ or ""
        command = commands.add_parser(
            name,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        rounds = _ROUNDS_OF.get(name, 5)
        rounds_help = f"measurements of each figure; the median counts ({rounds})"
        command.add_argument("--rounds", type=int, default=rounds, help=rounds_help)
        command.set_defaults(peers=(), activation_bits=16, trace=None)
        if peers := _PEERS_OF.get(name):
            _add_peers(command, peers)
        if name == "engine":
            _add_activation_bits(command)
        if name == "hit_rates":
            command.add_argument("--trace", type=Path, metavar="FILE", help="Mooncake's conversation_trace.jsonl[.gz]")
    arguments = parser.parse_args()
    options = Options(arguments.rounds, tuple(arguments.peers), arguments.activation_bits, arguments.trace)
    BENCHMARKS[arguments.name].run(options)


def _add_activation_bits(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--activation-bits",
        type=int,
        choices=(8, 16),
        help="of our engine: 16 as chip classes cpu-compute and cpu-bandwidth (default), 8 as their -a8 forms",
    )


def _add_peers(command: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    choice = command.add_mutually_exclusive_group()
    choice.add_argument(
        "--peers",
        nargs="+",
        choices=names,
        default=names,
        metavar="PEER",
        help=f"which other engines to measure beside ours, installed on first use (all: {', '.join(names)})",
    )
    choice.add_argument("--no-peers", dest="peers", action="store_const", const=(), help="ours alone")


if __name__ == "__main__":
    main()
