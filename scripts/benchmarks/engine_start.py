"""How long a worker's engine takes from nothing to its first token, in a fresh process: with full and empty caches."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scripts.benchmarks.report import Figure, median

PROMPT_TOKENS = 32
_TIMEOUT_S = 600.0


def start_figures(model: Path, rounds: int) -> list[Figure]:
    """Each round starts once with kernels and packed weights in the cache, and once without."""
    warm, cold = [], []
    _start_s(model, None)
    for _ in range(rounds):
        warm.append(_start_s(model, None))
        with tempfile.TemporaryDirectory(prefix="forebay-bench-") as empty:
            cold.append(_start_s(model, Path(empty)))
    return [
        Figure(f"fresh process to first token, prompt of {PROMPT_TOKENS}", median(warm), "s", "<= 2"),
        Figure("  kernels to compile and weights to pack first", median(cold), "s", "<= 60"),
    ]


def _start_s(model: Path, cache: Path | None) -> float:
    """Seconds until the process has its first token."""
    environment = dict(os.environ) if cache is None else {**os.environ, "FOREBAY_CACHE": str(cache)}
    began_s = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "scripts.benchmarks.first_token", str(model)],
        env=environment,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - began_s
        if process.wait(_TIMEOUT_S) or not line.strip().isdigit():
            raise RuntimeError("the engine did not come to its first token")
    return seconds
