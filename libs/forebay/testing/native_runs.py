"""Driving a native engine without scheduler or service: for tests of its numbers and for benchmarks."""

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forebay.engine.native_arena import NativeArena
from forebay.engine.native_engine import NativeEngine
from forebay.engine.native_load import load_native_engine, native_layout
from forebay.engine.native_precision import NativePrecision
from forebay.engine.types import Sampled, SamplingParams, Sequence, Slice
from forebay.kernels.cpu.instruction_set import InstructionSet
from forebay.kernels.cpu.packed_model import WeightPolicy
from forebay.kv.layout import KvDtype
from forebay.models.model_file import ModelFile

GREEDY = SamplingParams(max_tokens=1 << 20, seed=0, temperature=0.0)


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """How a native engine is run. An exact one computes in float32 throughout."""

    policy: WeightPolicy = WeightPolicy.BFLOAT16
    kv_dtype: KvDtype = KvDtype.BFLOAT16
    threads: int = 2
    activation_bits: int = 16
    block_tokens: int = 32
    instruction_set: InstructionSet | None = None  # None: the widest of this machine


SERVING = NativeSettings()
EXACT = NativeSettings(WeightPolicy.FLOAT32, KvDtype.FLOAT32)


@dataclass(slots=True)
class NativeRun:
    """An engine over private memory; blocks are handed out in order, and again once next_block is put back."""

    engine: NativeEngine
    arena: NativeArena
    next_block: int = 1

    def sequence(self, token_ids: Items[int], room_tokens: int = 0, sampling: SamplingParams = GREEDY) -> Sequence:
        """A sequence with blocks for its prompt and so many tokens more."""
        first = self.next_block
        self.next_block += -(-(len(token_ids) + room_tokens) // self.arena.layout.block_tokens)
        assert self.next_block <= self.arena.block_count, "the run has no more blocks"
        return Sequence(f"sequence-{first}", list(token_ids), sampling, list(range(first, self.next_block)))

    def step(self, slices: list[Slice]) -> list[Sampled]:
        """One engine step; the sequences advance and get their tokens."""
        outcomes = self.engine.step(slices)
        by_id = {part.sequence.sequence_id: part.sequence for part in slices}
        for part in slices:
            part.sequence.computed_tokens += part.token_count
        for outcome in outcomes:
            if outcome.token_id is not None:
                by_id[outcome.sequence_id].output_token_ids.append(outcome.token_id)
        return outcomes

    def logits(self, slices: list[Slice]) -> NDArray[np.float32]:
        """A copy of the raw logits of the slices that sample; the sequences advance but get no tokens."""
        logits = self.engine.logits(slices).copy()
        for part in slices:
            part.sequence.computed_tokens += part.token_count
        return logits


def native_run(model: ModelFile, block_count: int, settings: NativeSettings = SERVING) -> NativeRun:
    """Loads the model over a fresh arena of so many blocks; block 0 is left unused."""
    layout = native_layout(model.config, settings.kv_dtype, settings.block_tokens)
    arena = NativeArena(bytearray(block_count * layout.block_bytes), layout, block_count)
    engine = load_native_engine(
        model,
        arena,
        NativePrecision(settings.policy, settings.activation_bits),
        threads=settings.threads,
        instruction_set=settings.instruction_set,
    )
    return NativeRun(engine, arena)
