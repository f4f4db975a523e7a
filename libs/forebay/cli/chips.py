"""`forebay chips`: which chip classes there are, and what this machine reaches as one of them."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import yaml

from forebay.chips.chip_class import BUILT_IN, DECODE_DEFAULT, PREFILL_DEFAULT, ChipClass, chip_class_named
from forebay.chips.fleet_file import read_fleet_file
from forebay.chips.kv_layout import layout_for
from forebay.cli.parsing import command_parser
from forebay.engine.kv_memory import private_memory
from forebay.engine.load import load_engine
from forebay.engine.rate_measurement import MeasuredRates, blocks_needed, measure_rates
from forebay.engine.scheduler import Limits
from forebay.host.cores import usable_cores
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model

_EXAMPLES: Final = """\
  forebay chips ls
  forebay chips calibrate                             both classes that `up` starts by default
  forebay chips calibrate cpu-f32 --json
  forebay chips calibrate --fleet fleet.yaml          and store it, for `forebay up --fleet fleet.yaml`

Workers measure what they reach by themselves, and routers correct that by what requests then take. What is stored
counts until then: from the first request on, plans are made by seconds and money rather than by a rule of thumb.
Calibrate on a quiet machine."""


def run(arguments: Sequence[str]) -> int:
    """Prints a table, or JSON."""
    parser = command_parser("chips", "Shows chip classes, and measures what this machine reaches as one.", _EXAMPLES)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    listing = commands.add_parser("ls", help="list the chip classes that workers can be started as")
    calibrating = commands.add_parser("calibrate", help="measure prompt and token steps of a model as a chip class")
    calibrating.add_argument("chip_classes", nargs="*", metavar="CLASS", help="default: those that `up` starts")
    calibrating.add_argument("--model", metavar="DIR_OR_GGUF", help="model to measure with (default: the default one)")
    calibrating.add_argument("--threads", type=int, metavar="N", help="cores that a step may use (default: all)")
    calibrating.add_argument("--fleet", type=Path, metavar="FILE", help="fleet file to store the rates in; made anew")
    for command in (listing, calibrating):
        command.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    return _list(given) if given.command == "ls" else _calibrate(given)


def _list(given: argparse.Namespace) -> int:
    if given.json:
        print(json.dumps([_described(one) for one in BUILT_IN.values()], indent=2))
        return 0
    print(f"{'class':<18}{'device':<8}{'kernels':<9}{'weights':<10}{'KV':<10}{'block':>6}{'ranks':>6}")
    for one in BUILT_IN.values():
        print(
            f"{one.name:<18}{one.device:<8}{one.kernels.value:<9}{one.weight_dtype.value:<10}{one.kv_dtype.value:<10}"
            f"{one.block_tokens:>6}{one.ranks:>6}"
        )
    return 0


def _described(one: ChipClass) -> dict[str, Any]:
    return {
        "name": one.name,
        "device": one.device,
        "kernels": one.kernels.value,
        "weights": one.weight_dtype.value,
        "kv": one.kv_dtype.value,
        "block_tokens": one.block_tokens,
        "chunk_tokens": one.chunk_tokens,
        "ranks": one.ranks,
        "watts": one.watts,
        "usd_per_hour": one.usd_per_hour,
    }


def _calibrate(given: argparse.Namespace) -> int:
    names = given.chip_classes or [PREFILL_DEFAULT, DECODE_DEFAULT]
    classes = [chip_class_named(name) for name in names]  # refuses an unknown one before anything is measured
    if given.fleet is not None and given.fleet.exists():
        read_fleet_file(given.fleet)  # refuses what it would not be read as afterwards
    measured = {one.name: _measured(one, given) for one in classes}
    if given.fleet is not None:
        _store(given.fleet, measured)
        _say(f"stored in {given.fleet}; start with it: forebay up --fleet {given.fleet}")
    if given.json:
        print(json.dumps({name: asdict(rates) for name, rates in measured.items()}, indent=2))
        return 0
    print(f"{'class':<18}{'GFLOP/s':>9}{'GB/s':>7}{'prompt tok/s':>14}{'tok/s':>8}{'tok/s of 8':>12}")
    for name, one in measured.items():
        print(
            f"{name:<18}{one.flops_per_s / 1e9:>9.0f}{one.bytes_per_s / 1e9:>7.1f}{one.prefill_tokens_per_s:>14.0f}"
            f"{one.decode_tokens_per_s:>8.0f}{one.batch_tokens_per_s:>12.0f}"
        )
    return 0


def _measured(chip_class: ChipClass, given: argparse.Namespace) -> MeasuredRates:
    model = open_model(resolve_model(given.model, _say))
    layout = layout_for(model.config, chip_class)
    threads = given.threads or chip_class.threads or usable_cores()
    memory = private_memory(layout, blocks_needed(layout.block_tokens))
    engine = load_engine(model, chip_class, memory, threads, _say)
    _say(f"measuring {chip_class.name} on {threads} core{'' if threads == 1 else 's'} ...")
    limits = Limits(layout.block_tokens, model.config.context_tokens, chip_class.chunk_tokens)
    return measure_rates(engine, limits, threads)


def _store(path: Path, measured: dict[str, MeasuredRates]) -> None:
    """Into the file, beside all else that it says; comments are lost."""
    content: dict[str, Any] = (yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None) or {}
    classes = content.setdefault("chip_classes", {}) or {}
    content["chip_classes"] = classes
    for name, rates in measured.items():
        figures = classes.setdefault(name, {}) or {}
        classes[name] = {
            **figures,
            "flops_per_s": float(f"{rates.flops_per_s:.4g}"),
            "bytes_per_s": float(f"{rates.bytes_per_s:.4g}"),
        }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
