"""Generation loops on the bare native engine, timed step by step. Knows one model and its memory; judges nothing."""

import random
import statistics
import time
from dataclasses import dataclass

from forebay.engine.types import Sequence, Slice
from forebay.models.config import DecoderConfig
from forebay.models.default_model import resolve_model
from forebay.models.model_file import ModelFile, open_model
from forebay.testing.native_runs import NativeRun, NativeSettings, native_run

_BLOCK_COUNT = 700
_CHUNK_TOKENS = 256
_LINEARS = ("qkv", "output", "gate_up", "down", "head")


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Times of one generation or one prompt."""

    tokens_per_s: float
    median_step_s: float
    phase_s: dict[str, float]  # of one step, on average

    @property
    def linear_s(self) -> float:
        """Seconds of one step in linear layers."""
        return sum(self.phase_s[name] for name in _LINEARS)


class NativeWorkload:
    """The model over private memory; every measurement takes it from the start."""

    def __init__(self, model: ModelFile, run: NativeRun, packed_bytes: int) -> None:
        self._config: DecoderConfig = model.config
        self._run = run
        self._packed_bytes = packed_bytes
        self._random = random.Random(0)
        self.packed_share = packed_bytes / model.path.stat().st_size
        self.workspace_bytes = 0

    def decode(self, batch: int, context_tokens: int, step_count: int) -> StepTimes:
        """Greedy generation of `step_count` tokens for each of `batch` sequences."""
        self._run.next_block = 1
        sequences = [self._sequence(context_tokens, step_count + 1) for _ in range(batch)]
        for sequence in sequences:
            self._run.step([Slice(sequence, context_tokens)])
        self._run.engine.take_phase_seconds()
        seconds = []
        for _ in range(step_count):
            slices = [Slice(sequence, 1) for sequence in sequences]
            began_s = time.perf_counter()
            self._run.step(slices)
            seconds.append(time.perf_counter() - began_s)
        phases = self._run.engine.take_phase_seconds()
        if batch == 16 and context_tokens < _CHUNK_TOKENS:
            self.workspace_bytes = self._run.engine.workspace_bytes
        return StepTimes(
            batch * step_count / sum(seconds),
            statistics.median(seconds),
            {name: total / step_count for name, total in phases.items()},
        )

    def prefill(self, token_count: int) -> StepTimes:
        """One prompt in chunks, as a worker computes it."""
        self._run.next_block = 1
        sequence = self._sequence(token_count, 1)
        self._run.engine.take_phase_seconds()
        began_s = time.perf_counter()
        while left := token_count - sequence.computed_tokens:
            self._run.step([Slice(sequence, min(_CHUNK_TOKENS, left))])
        seconds = time.perf_counter() - began_s
        return StepTimes(token_count / seconds, seconds, self._run.engine.take_phase_seconds())

    def step_bytes(self, batch: int, context_tokens: int) -> float:
        """Bytes that a decode step must read: all weights once, and the KV of every sequence."""
        kv_bytes = self._run.arena.layout.block_bytes / self._run.arena.layout.block_tokens
        return self._packed_bytes + batch * context_tokens * kv_bytes

    def linear_operations(self, token_count: int) -> float:
        """Multiplications and additions in the linear layers of a prompt; only the last token reaches the head."""
        config = self._config
        attention = (2 * config.query_heads + 2 * config.kv_heads) * config.head_dim * config.hidden_size
        feed_forward = 3 * config.intermediate_size * config.hidden_size
        head = config.vocabulary_size * config.hidden_size
        return 2.0 * (token_count * config.layers * (attention + feed_forward) + head)

    def _sequence(self, token_count: int, room_tokens: int) -> Sequence:
        token_ids = [self._random.randrange(1_000, 40_000) for _ in range(token_count)]
        return self._run.sequence(token_ids, room_tokens)


def default_workload(threads: int) -> NativeWorkload:
    """The default model, on so many threads."""
    model = open_model(resolve_model(None, print))
    run = native_run(model, _BLOCK_COUNT, NativeSettings(threads=threads))
    return NativeWorkload(model, run, run.engine.weight_bytes)
