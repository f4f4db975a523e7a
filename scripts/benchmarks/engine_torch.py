"""Our torch engine without scheduler or service, timed step by step. Knows one model and its memory; judges nothing."""

import time
from dataclasses import replace

from forebay.chips import chip_class_named
from forebay.engine.types import Slice
from forebay.models.model_file import ModelFile
from forebay.testing.engine_runs import engine_run
from scripts.benchmarks.generation import Generation

_BLOCK_COUNT = 128
_CHUNK_TOKENS = 256


class TorchContestant:
    """The model over private memory in bfloat16; every generation takes it from the start."""

    def __init__(self, model: ModelFile, threads: int) -> None:
        self._run = engine_run(model, replace(chip_class_named("cpu-bf16"), threads=threads), _BLOCK_COUNT)

    def generate(self, prompts: list[list[int]], steps: int) -> Generation:
        """As Contestant.generate; the prompts one after the other, in chunks, as a worker computes them."""
        self._run.next_block = 1
        sequences = [self._run.sequence(prompt, steps + 1) for prompt in prompts]
        began_s = time.perf_counter()
        for sequence, prompt in zip(sequences, prompts, strict=True):
            for start in range(0, len(prompt), _CHUNK_TOKENS):
                self._run.step([Slice(sequence, min(_CHUNK_TOKENS, len(prompt) - start))])
        prefill_s = time.perf_counter() - began_s
        step_s = []
        for _ in range(steps):
            slices = [Slice(sequence, 1) for sequence in sequences]
            began_s = time.perf_counter()
            self._run.step(slices)
            step_s.append(time.perf_counter() - began_s)
        first_token_ids = tuple(sequence.output_token_ids[0] for sequence in sequences)
        return Generation(len(prompts), len(prompts[0]), prefill_s, tuple(step_s), first_token_ids)
