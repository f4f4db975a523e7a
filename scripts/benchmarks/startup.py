"""Warm start: from `forebay up PROMPT` to its answer, and what the idle mesh holds in memory."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from forebay.host.shared_memory import segments_of
from forebay.mesh.port import free_port_base
from forebay.mesh.record import read_record
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report

PROMPT = "What is the capital of France?"
_FIRST_PORT_BASE = 18_400


def run(options: Options) -> None:
    """One unmeasured start fills the caches; then `rounds` starts are measured."""
    seconds: list[float] = []
    memory: list[tuple[int, int]] = []
    for number in range(options.rounds + 1):
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
            port_base = str(free_port_base(_FIRST_PORT_BASE))
            _forebay(folder, "up", PROMPT, "--port-base", port_base)
            if number > 0:
                seconds.append(time.monotonic() - began_s)
                memory.append(resident_bytes(Path(folder)))
            _forebay(folder, "down")
    pss_gb = median([pss for pss, _ in memory]) / 1e9
    arena_gb = median([arena for _, arena in memory]) / 1e9
    report(
        "startup",
        [
            Figure("warm up to the end of the first answer", median(seconds), "s", "<= 15"),
            Figure("idle mesh, all processes and shared memory", pss_gb + arena_gb, "GB", "<= 2.5"),
            Figure("  of which processes (proportional set size)", pss_gb, "GB"),
            Figure("  of which KV arenas that no process has touched yet", arena_gb, "GB"),
        ],
    )


def resident_bytes(state_dir: Path) -> tuple[int, int]:
    """Memory of the mesh: the processes' shares (PSS counts a shared page once), and the arenas' pages beyond those."""
    record = read_record(state_dir)
    if record is None:
        raise RuntimeError(f"no mesh is recorded in {state_dir}")
    pss = mapped_arena = 0
    for service in record.services:
        process = psutil.Process(service.process.pid)
        pss += process.memory_full_info().pss
        mapped_arena += sum(entry.pss for entry in process.memory_maps() if record.node_id in entry.path)
    arenas = sum(path.stat().st_blocks * 512 for path in segments_of(record.node_id))
    return pss, max(0, arenas - mapped_arena)


def _forebay(state_dir: str, *arguments: str) -> None:
    subprocess.run(
        [str(Path(sys.executable).with_name("forebay")), *arguments],
        env={**os.environ, "FOREBAY_STATE_DIR": state_dir},
        check=True,
        stdout=subprocess.DEVNULL,
    )
