"""The native engine alone: decode and prefill rates, where a step's time goes, and its share of the machine's peaks."""

import os
from collections import defaultdict

from forebay.kernels.cpu.library import load_library
from forebay.kernels.cpu.peaks import Arithmetic, Peaks, measure_peaks
from scripts.benchmarks.engine_native import NativeWorkload, StepTimes, default_workload
from scripts.benchmarks.report import Figure, median, report

_DECODE = ((1, 32), (1, 1024), (4, 32), (16, 32), (16, 1024))  # (sequences, tokens of context)
_PREFILL = (1024, 4096)
_PROFILED = ((1, 32), (16, 32))
_STEPS = 128


def run(rounds: int) -> None:
    """`rounds` rounds, each of every figure once: the machine drifts, so figures of one round belong together."""
    threads = len(os.sched_getaffinity(0))
    library = load_library(progress=print)
    workload = default_workload(threads)
    decode: dict[tuple[int, int], list[StepTimes]] = defaultdict(list)
    prefill: dict[int, list[StepTimes]] = defaultdict(list)
    peaks: list[Peaks] = []
    for _ in range(rounds):
        peaks.append(measure_peaks(library, threads))
        for shape in _DECODE:
            decode[shape].append(workload.decode(*shape, step_count=_STEPS))
        for token_count in _PREFILL:
            prefill[token_count].append(workload.prefill(token_count))
    report(
        "engine",
        [
            *_peak_figures(peaks),
            *_decode_figures(decode, peaks, workload),
            *_prefill_figures(prefill, peaks, workload),
            *(figure for shape in _PROFILED for figure in _profile(shape, decode[shape])),
            Figure("step workspace at batch 16", workload.workspace_bytes / 1e6, "MB", "<= 64"),
            Figure("packed weights, of the model's file", workload.packed_share, "", "<= 1.05"),
        ],
    )


def _peak_figures(peaks: list[Peaks]) -> list[Figure]:
    rates = {kind: median([one.operations_per_s[kind] for one in peaks]) / 1e9 for kind in Arithmetic}
    read = median([one.read_bytes_per_s for one in peaks]) / 1e9
    arithmetic = [Figure(f"peak {kind.name.lower()}", rates[kind], "GFLOP/s") for kind in Arithmetic]
    return [*arithmetic, Figure("peak memory read", read, "GB/s")]


def _decode_figures(
    decode: dict[tuple[int, int], list[StepTimes]], peaks: list[Peaks], workload: NativeWorkload
) -> list[Figure]:
    figures = []
    for (batch, context), times in decode.items():
        name = f"decode, {batch} sequences, context {context}"
        figures.append(Figure(name, median([one.tokens_per_s for one in times]), "tok/s"))
        read_bytes = workload.step_bytes(batch, context)
        shares = [
            read_bytes / one.median_step_s / peak.read_bytes_per_s for one, peak in zip(times, peaks, strict=True)
        ]
        figures.append(Figure("  of the memory bandwidth", median(shares), "", ">= 0.9" if batch == 1 else None))
    return figures


def _prefill_figures(prefill: dict[int, list[StepTimes]], peaks: list[Peaks], workload: NativeWorkload) -> list[Figure]:
    figures = []
    for token_count, times in prefill.items():
        figures.append(Figure(f"prefill, {token_count} tokens", median([one.tokens_per_s for one in times]), "tok/s"))
        shares = [
            workload.linear_operations(token_count) / one.linear_s / peak.operations_per_s[Arithmetic.INT8]
            for one, peak in zip(times, peaks, strict=True)
        ]
        figures.append(Figure("  of the int8 peak, over the linears", median(shares), "", ">= 0.8"))
    short, long = (median([one.tokens_per_s for one in prefill[count]]) for count in _PREFILL)
    ratio = f"time per token of {_PREFILL[1]} tokens, of that of {_PREFILL[0]}"
    return [*figures, Figure(ratio, short / long, "", "<= 1.6")]


def _profile(shape: tuple[int, int], times: list[StepTimes]) -> list[Figure]:
    names = times[0].phase_s
    batch, context = shape
    return [
        Figure(f"step of {batch} at {context}: {name}", 1e3 * median([one.phase_s[name] for one in times]), "ms")
        for name in names
    ]
