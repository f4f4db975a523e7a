"""Runs one benchmark by name."""

import argparse

from scripts.benchmarks import engine, mesh, startup

BENCHMARKS = {"startup": startup, "mesh": mesh, "engine": engine}


def main() -> None:
    """Runs the benchmark named on the command line."""
    names = "\n".join(f"  {name:10} {(module.__doc__ or '').splitlines()[0]}" for name, module in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=f"Measures, prints a table with the machine, writes .bench/NAME.json.\n\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=sorted(BENCHMARKS), metavar="NAME", help="which benchmark")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each figure; the median counts (5)")
    arguments = parser.parse_args()
    BENCHMARKS[arguments.name].run(arguments.rounds)


if __name__ == "__main__":
    main()
