"""Driving an engine without scheduler or service: for tests of its numbers and for benchmarks of the bare engine."""

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

from torch import Tensor

from forebay.chips import ChipClass
from forebay.chips.kv_layout import layout_for
from forebay.engine.arena import KvArena
from forebay.engine.kv_memory import private_memory
from forebay.engine.torch_engine import TorchEngine
from forebay.engine.torch_load import load_torch_engine
from forebay.engine.types import Sampled, SamplingParams, Sequence, Slice
from forebay.models.model_file import ModelFile

GREEDY = SamplingParams(max_tokens=1 << 20, seed=0, temperature=0.0)


@dataclass(slots=True)
class EngineRun:
    """An engine over private memory; blocks are handed out in order, and again once next_block is put back."""

    engine: TorchEngine
    arena: KvArena
    next_block: int = 1

    def sequence(
        self, token_ids: Items[int], room_tokens: int = 0, sampling: SamplingParams = GREEDY, name: str | None = None
    ) -> Sequence:
        """A sequence with blocks for its prompt and so many tokens more."""
        first = self.next_block
        self.next_block += -(-(len(token_ids) + room_tokens) // self.arena.layout.block_tokens)
        assert self.next_block <= self.arena.block_count, "the run has no more blocks"
        return Sequence(name or f"sequence-{first}", list(token_ids), sampling, list(range(first, self.next_block)))

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

    def generate(self, sequences: Items[Sequence], token_count: int) -> list[list[int]]:
        """So many tokens for each: prompts whole, one by one, then all sequences together."""
        for sequence in sequences:
            self.step([Slice(sequence, sequence.token_count - sequence.computed_tokens)])
        for _ in range(token_count - 1):
            self.step([Slice(sequence, 1) for sequence in sequences])
        return [sequence.output_token_ids for sequence in sequences]

    def logits(self, slices: list[Slice]) -> Tensor:
        """Raw logits of the slices that sample; the sequences advance but get no tokens."""
        logits = self.engine.logits(slices)
        for part in slices:
            part.sequence.computed_tokens += part.token_count
        return logits

    def poison(self, block: int) -> None:
        """Fills a block with NaN."""
        for part in self.arena.parts:
            numbers = part.blocks if part.scales is None else part.scales
            numbers[block] = float("nan")


def engine_run(model: ModelFile, chip_class: ChipClass, block_count: int, block_tokens: int | None = None) -> EngineRun:
    """Loads the model on torch over a fresh arena of so many blocks; block 0 is left unused.

    Args: block_tokens: None: those of the chip class.
    """
    if block_tokens is not None:
        chip_class = replace(chip_class, block_tokens=block_tokens)
    layout = layout_for(model.config, chip_class)
    memory = private_memory(layout, block_count)
    arena = KvArena(memory.buffer, layout, block_count)
    return EngineRun(load_torch_engine(model, chip_class, memory, chip_class.threads or 1), arena)
