"""Prefill and decode workers' engines on the same cores at the same time, beside each of them alone.

Two processes over one arena, each with the engine thread, the scheduler and the core share of a real worker, but no
service: one decodes 4 sequences (context 32, begun anew every 128 tokens), the other computes prompts of 512 tokens
back to back. A round lets each run alone for some seconds, then both. Shares are those of a round's own lone rates.
"p99 step" is the time from the end of one decode step to the end of the next.

Examples:
  scripts/bench sharing              five rounds, a minute and a half
  scripts/bench sharing --rounds 1   a look
"""

import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from forebay.engine.native_load import native_layout
from forebay.host.shared_memory import FOLDER
from forebay.kernels.cpu.library import load_library
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.role import Role
from scripts.benchmarks.answering_process import AnsweringProcess
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report

_SECONDS = 5.0
_BLOCK_COUNT = 128


def run(options: Options) -> None:
    """`rounds` rounds of decode alone, prefill alone, and both."""
    load_library(progress=print)
    model = open_model(resolve_model(None, print))
    alone: dict[Role, list[dict[str, Any]]] = {Role.DECODE: [], Role.PREFILL: []}
    together: dict[Role, list[dict[str, Any]]] = {Role.DECODE: [], Role.PREFILL: []}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="forebay-bench-", dir=FOLDER)))
        with (folder / "arena").open("wb") as file:
            file.truncate(_BLOCK_COUNT * native_layout(model.config).block_bytes)
        workers = {role: stack.enter_context(_start(role, folder)) for role in alone}
        for worker in workers.values():
            worker.ask(_run(1.0))
        for _ in range(options.rounds):
            for role, worker in workers.items():
                alone[role].append(worker.ask(_run(_SECONDS)))
            for worker in workers.values():
                worker.begin(_run(_SECONDS))
            for role, worker in workers.items():
                together[role].append(worker.finish())
    report("sharing", _figures(alone, together))


def _run(seconds: float) -> dict[str, Any]:
    return {"do": "run", "seconds": seconds}


def _start(role: Role, folder: Path) -> AnsweringProcess:
    log = Path(".bench") / f"sharing-{role.value}.log"
    log.parent.mkdir(exist_ok=True)
    module = "scripts.benchmarks.sharing_worker"
    command = [sys.executable, "-m", module, role.value, str(folder / "arena"), str(folder / "cores")]
    return AnsweringProcess(command, os.environ, log)


def _figures(alone: dict[Role, list[dict[str, Any]]], together: dict[Role, list[dict[str, Any]]]) -> list[Figure]:
    figures = []
    for role, name, target in ((Role.DECODE, "decode, 4 at 32", ">= 0.7"), (Role.PREFILL, "prefill, 512", ">= 0.5")):
        lone, shared = ([one["tokens_per_s"] for one in runs[role]] for runs in (alone, together))
        kept = median([both / one for one, both in zip(lone, shared, strict=True)])
        figures += [
            Figure(f"{name}, alone", median(lone), "tok/s"),
            Figure(f"{name}, both at once", median(shared), "tok/s"),
            Figure("  kept of the lone rate", kept, "", target),
        ]
    lone, shared = ([_p99(one["step_s"]) for one in runs[Role.DECODE]] for runs in (alone, together))
    return [
        *figures,
        Figure("decode step, p99, alone", 1e3 * median(lone), "ms"),
        Figure("decode step, p99, both at once", 1e3 * median(shared), "ms"),
        Figure("  of the lone one", median([b / a for a, b in zip(lone, shared, strict=True)]), "", "<= 2"),
    ]


def _p99(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=100)[98]
