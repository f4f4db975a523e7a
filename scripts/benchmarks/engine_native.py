"""Our native engine without scheduler or service, timed step by step. Knows one model; judges nothing."""

import time
from dataclasses import dataclass

from forebay.engine.types import SamplingParams, Slice
from forebay.models.config import DecoderConfig
from forebay.models.model_file import ModelFile
from forebay.testing.native_runs import GREEDY, NativeSettings, native_run
from scripts.benchmarks.generation import Generation

_BLOCK_COUNT = 700
_CHUNK_TOKENS = 256
LINEARS = ("qkv", "output", "gate_up", "down", "head")
"""The phases of a step that multiply matrices."""


class NativeContestant:
    """The model over private memory; every generation takes it from the start."""

    def __init__(self, model: ModelFile, threads: int, activation_bits: int) -> None:
        self._config: DecoderConfig = model.config
        self._run = native_run(model, _BLOCK_COUNT, NativeSettings(threads=threads, activation_bits=activation_bits))
        self._byte_planes = activation_bits // 8
        self._packed_bytes = self._run.engine.weight_bytes
        self.packed_share = self._packed_bytes / model.path.stat().st_size

    def drawing(self, sampling: SamplingParams) -> "DrawingContestant":
        """The same engine and memory, but tokens are drawn."""
        return DrawingContestant(self, sampling)

    def generate(self, prompts: list[list[int]], steps: int, sampling: SamplingParams = GREEDY) -> Generation:
        """As Contestant.generate; the prompts one after the other, in chunks, as a worker computes them."""
        self._run.next_block = 1
        sequences = [self._run.sequence(prompt, steps + 1, sampling) for prompt in prompts]
        self._run.engine.take_phase_seconds()
        began_s = time.perf_counter()
        for sequence, prompt in zip(sequences, prompts, strict=True):
            for start in range(0, len(prompt), _CHUNK_TOKENS):
                self._run.step([Slice(sequence, min(_CHUNK_TOKENS, len(prompt) - start))])
        prefill_s = time.perf_counter() - began_s
        prefill_phase_s = self._run.engine.take_phase_seconds()
        step_s = []
        for _ in range(steps):
            slices = [Slice(sequence, 1) for sequence in sequences]
            began_s = time.perf_counter()
            self._run.step(slices)
            step_s.append(time.perf_counter() - began_s)
        step_phase_s = {name: total / max(steps, 1) for name, total in self._run.engine.take_phase_seconds().items()}
        first_token_ids = tuple(sequence.output_token_ids[0] for sequence in sequences)
        return Generation(
            len(prompts), len(prompts[0]), prefill_s, tuple(step_s), first_token_ids, prefill_phase_s, step_phase_s
        )

    @property
    def workspace_bytes(self) -> int:
        """Memory that steps have needed so far, besides logits."""
        return self._run.engine.workspace_bytes

    def step_bytes(self, sequences: int, context_tokens: int) -> float:
        """Bytes that a decode step must read: all weights once, and the KV of every sequence."""
        kv_bytes = self._run.arena.layout.block_bytes / self._run.arena.layout.block_tokens
        return self._packed_bytes + sequences * context_tokens * kv_bytes

    def linear_operations(self, token_count: int) -> float:
        """Byte products and their additions in the linear layers of a prompt; only the last token reaches the head.

        An activation of 16 bits takes two byte products; those of the head always have 16.
        """
        config = self._config
        attention = (2 * config.query_heads + 2 * config.kv_heads) * config.head_dim * config.hidden_size
        feed_forward = 3 * config.intermediate_size * config.hidden_size
        head = config.vocabulary_size * config.hidden_size
        return 2.0 * (self._byte_planes * token_count * config.layers * (attention + feed_forward) + 2 * head)


@dataclass(frozen=True, slots=True)
class DrawingContestant:
    """Our native engine with tokens that are drawn instead of the likeliest."""

    native: NativeContestant
    sampling: SamplingParams

    def generate(self, prompts: list[list[int]], steps: int) -> Generation:
        """As Contestant.generate, but not greedily."""
        return self.native.generate(prompts, steps, self.sampling)
