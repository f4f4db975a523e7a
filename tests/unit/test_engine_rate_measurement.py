"""What is measured is what an engine of known speed does."""

import pytest

from forebay.engine.rate_measurement import BATCH, blocks_needed, measure_rates
from forebay.engine.scheduler import Limits
from forebay.engine.step_size import size_of
from forebay.engine.types import Sampled, Slice
from forebay.testing.fake_engine import MODEL_COST

FLOPS_PER_S, BYTES_PER_S = 2e9, 1e8
LIMITS = Limits(block_tokens=32, context_tokens=8192, chunk_tokens=256)


class TimedEngine:
    """Takes as long as its operations where there are many rows, else as its bytes."""

    model_cost = MODEL_COST

    def __init__(self) -> None:
        self.now_s = 0.0
        self.most_block = 0

    def use_threads(self, threads: int) -> None:
        assert threads == 2

    def step(self, slices: list[Slice]) -> list[Sampled]:
        size = size_of(slices)
        cost = self.model_cost.of(size)
        self.now_s += cost.operations / FLOPS_PER_S if size.row_count > BATCH else cost.moved_bytes / BYTES_PER_S
        self.most_block = max(self.most_block, *(max(part.sequence.block_table) for part in slices))
        return [
            Sampled(part.sequence.sequence_id, 5)
            for part in slices
            if part.sequence.computed_tokens + part.token_count == part.sequence.token_count
        ]


def test_rates_are_those_of_the_engine() -> None:
    engine = TimedEngine()
    measured = measure_rates(engine, LIMITS, threads=2, clock=lambda: engine.now_s)
    assert measured.flops_per_s == pytest.approx(FLOPS_PER_S)
    assert measured.bytes_per_s == pytest.approx(BYTES_PER_S)
    assert measured.batch_tokens_per_s > measured.decode_tokens_per_s > 0
    assert measured.prefill_tokens_per_s > 0
    assert engine.most_block < blocks_needed(LIMITS.block_tokens)
