"""Figures of a benchmark: a table for people, JSON for machines, both with the machine they were measured on."""

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from forebay.host.cores import usable_cores


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    value: None: it could not be measured, and `peer` says why.
    target: what it should be, with its relation (">= 0.9"); None: stated, not judged.
    peer: what it was measured against.
    """

    name: str
    value: float | None
    unit: str
    target: str | None = None
    peer: str | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the target is met; None without one, or without a value."""
        if self.target is None or self.value is None:
            return None
        relation, bound = self.target.split()
        return self.value <= float(bound) if relation == "<=" else self.value >= float(bound)


def median(values: Sequence[float]) -> float:
    """The middle of several measurements."""
    return statistics.median(values)


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many per cent do not exceed; not a number of none."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)] if values else math.nan


def report(bench: str, figures: Sequence[Figure]) -> None:
    """Prints the table and writes .bench/BENCH.json."""
    machine, commit = _machine(), _commit()
    table = Table(title=f"{bench} · {machine} · {commit}", title_justify="left")
    for column in ("figure", "value", "unit", "target", "met", "against"):
        table.add_column(column, justify="right" if column == "value" else "left")
    marks = {None: "", True: "yes", False: "NO"}
    for figure in figures:
        table.add_row(
            figure.name,
            "absent" if figure.value is None else f"{figure.value:.4g}",
            figure.unit,
            figure.target or "",
            marks[figure.is_met],
            figure.peer or "",
        )
    Console(width=max(120, Console().width)).print(table)
    folder = Path(".bench")
    folder.mkdir(exist_ok=True)
    document = {"bench": bench, "machine": machine, "commit": commit, "figures": [asdict(figure) for figure in figures]}
    (folder / f"{bench}.json").write_text(json.dumps(document, indent=2) + "\n")


def _machine() -> str:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {usable_cores()} cores, {memory_gib:.0f} GiB, {platform.system()} {platform.machine()}"


def _commit() -> str:
    result = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
