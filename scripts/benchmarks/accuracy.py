"""How close the engine's predictions are to float32, and how close llama.cpp's are, on the same weights and tokens.

Teacher-forced: each text is given token by token, whatever would have been predicted, and after every token the whole
distribution is compared with the reference, which is our torch engine in float32 (chip class cpu-f32) over the
dequantised weights of SmolLM2-135M-Instruct, Q4_1. KL(reference || engine) in nats, the mean over all tokens;
top-1: how often both hold the same token for the likeliest. Ours rounds activations to 16 bits, its -a8 chip classes
to 8, as llama.cpp does.

The texts are prose, dialogue, Chinese, numbers, documentation, Python, C++ and a licence, some 3,000 tokens: see
scripts/benchmarks/texts and corpus.py. llama.cpp is installed on first use (it compiles for some ten minutes).

Examples:
  scripts/bench accuracy              some two minutes
  scripts/bench accuracy --no-peers   ours alone
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from forebay.chips import chip_class_named
from forebay.engine.types import Sequence, Slice
from forebay.host.cores import usable_cores
from forebay.models.default_model import resolve_model
from forebay.models.model_file import ModelFile, open_model
from forebay.testing.engine_runs import EngineRun, engine_run
from forebay.testing.native_runs import NativeRun, NativeSettings, native_run
from scripts.benchmarks.corpus import MOST_TOKENS, Text, corpus
from scripts.benchmarks.divergence import Divergence, Logits, total
from scripts.benchmarks.generation import ContestantAbsentError
from scripts.benchmarks.options import Options
from scripts.benchmarks.peer import Peer, start_peer
from scripts.benchmarks.peer_packages import PEERS
from scripts.benchmarks.report import Figure, report

_OURS, _OURS_A8, _TORCH, _PEER = "forebay", "forebay a8", "forebay on torch", "llama.cpp"
_BLOCK_TOKENS = 32

Predictions = Iterator[dict[int, Logits]]
"""After every token: logits [vocabulary] of each text that has that many tokens, by the text's index."""


def run(options: Options) -> None:
    """Everything is deterministic: one round."""
    model = open_model(resolve_model(None, print))
    texts = corpus(model)
    threads = usable_cores()
    block_count = 1 + len(texts) * -(-(MOST_TOKENS + 1) // _BLOCK_TOKENS)
    reference = _torch_run(model, "cpu-f32", threads, block_count)
    native, native_a8 = (
        native_run(model, block_count, NativeSettings(threads=threads, activation_bits=bits)) for bits in (16, 8)
    )
    engines = {
        _OURS: _predictions(native, texts),
        _OURS_A8: _predictions(native_a8, texts),
        _TORCH: _predictions(_torch_run(model, "cpu-bf16", threads, block_count), texts),
    }
    absent = None
    with tempfile.TemporaryDirectory(prefix="forebay-bench-") as folder:
        if _PEER in options.peers:
            try:
                engines[_PEER] = _peer_predictions(model, texts, Path(folder))
            except ContestantAbsentError as error:
                absent = str(error)
        divergences = _compare(_predictions(reference, texts), engines, len(texts))
    figures = _figures(divergences, texts)
    if _PEER in options.peers:
        figures += _comparison(divergences, absent)
    report("accuracy", figures)


def _torch_run(model: ModelFile, chip_class: str, threads: int, block_count: int) -> EngineRun:
    return engine_run(model, replace(chip_class_named(chip_class), threads=threads), block_count, _BLOCK_TOKENS)


def _predictions(run: NativeRun | EngineRun, texts: list[Text]) -> Predictions:
    """All texts side by side, a token of each in every step."""
    sequences: dict[int, Sequence] = {
        index: run.sequence(text.token_ids[:1], len(text.token_ids)) for index, text in enumerate(texts)
    }
    for position in range(MOST_TOKENS):
        running = {index: one for index, one in sequences.items() if position < len(texts[index].token_ids)}
        logits = np.asarray(run.logits([Slice(one, 1) for one in running.values()]))
        for index, sequence in running.items():
            sequence.output_token_ids.extend(texts[index].token_ids[position + 1 : position + 2])
        yield dict(zip(running, logits, strict=True))


def _peer_predictions(model: ModelFile, texts: list[Text], folder: Path) -> Predictions:
    """The peer computes all texts now and ends; what it predicted is read from files later."""
    with ExitStack() as stack:
        process = stack.enter_context(start_peer(PEERS[_PEER], [str(model.path)], print))
        files: list[np.memmap[Any, np.dtype[np.float32]]] = []
        for index, text in enumerate(texts):
            path = folder / f"{index}.logits"
            Peer(process).score(text.token_ids, path)
            shape = (len(text.token_ids), model.config.vocabulary_size)
            files.append(np.memmap(path, np.float32, "r", shape=shape))
    return (
        {index: np.asarray(file[position]) for index, file in enumerate(files) if position < len(file)}
        for position in range(MOST_TOKENS)
    )


def _compare(reference: Predictions, engines: dict[str, Predictions], text_count: int) -> dict[str, list[Divergence]]:
    """Divergence of each engine by text."""
    divergences = {name: [Divergence() for _ in range(text_count)] for name in engines}
    for position, expected in enumerate(reference):
        if position % 64 == 0:
            print(f"token {position} of each text", flush=True)
        for name, predictions in engines.items():
            found = next(predictions)
            for index, logits in expected.items():
                divergences[name][index].add(logits, found[index])
    return divergences


def _figures(divergences: dict[str, list[Divergence]], texts: list[Text]) -> list[Figure]:
    figures = [Figure("tokens", total(divergences[_OURS]).positions, "", ">= 2000")]
    for name, parts in divergences.items():
        whole = total(parts)
        target = "<= 0.0035" if name in (_OURS, _OURS_A8) else None
        figures.append(Figure(f"{name}: mean KL to float32", whole.mean_kl, "nat", target))
        figures.append(Figure("  top-1 agreement", whole.top1, ""))
        figures += [Figure(f"  {text.name}", part.mean_kl, "nat") for text, part in zip(texts, parts, strict=True)]
    return figures


def _comparison(divergences: dict[str, list[Divergence]], absent: str | None) -> list[Figure]:
    against = _PEER if absent is None else f"{_PEER}: {absent}"
    figures = []
    for name in (_OURS, _OURS_A8):
        kl_ratio, more_agreement = None, None
        if _PEER in divergences:
            ours, theirs = total(divergences[name]), total(divergences[_PEER])
            kl_ratio, more_agreement = ours.mean_kl / theirs.mean_kl, ours.top1 - theirs.top1
        figures += [
            Figure(f"mean KL, {name}'s of theirs", kl_ratio, "", "<= 1", against),
            Figure(f"top-1 agreement, {name}'s less theirs", more_agreement, "", ">= 0", against),
        ]
    return figures
