"""What an engine reaches on this machine with its model: prompts for arithmetic, single tokens for memory.

The same steps that a worker would be given, and the same estimator that it learns by. Knows the engine and a clock.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from forebay.engine.reached_rates import ReachedRates
from forebay.engine.scheduler import Limits, Scheduler
from forebay.engine.step_size import size_of
from forebay.engine.types import Engine, SamplingParams, Sequence

PROMPT_TOKENS: Final = 1024
OUTPUT_TOKENS: Final = 64
BATCH: Final = 8
REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class MeasuredRates:
    """flops_per_s, bytes_per_s: as ChipRates. The others, tokens per second, say what that means: of a prompt of
    PROMPT_TOKENS, and of generating behind it, one sequence and BATCH of a quarter of it together.
    """

    flops_per_s: float
    bytes_per_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    batch_tokens_per_s: float


def blocks_needed(block_tokens: int) -> int:
    """Of the memory that an engine to be measured is over."""
    most_tokens = max(PROMPT_TOKENS + OUTPUT_TOKENS, BATCH * (PROMPT_TOKENS // 4 + OUTPUT_TOKENS + block_tokens))
    return -(-most_tokens // block_tokens)


def measure_rates(
    engine: Engine, limits: Limits, threads: int, clock: Callable[[], float] = time.perf_counter
) -> MeasuredRates:
    """Takes some seconds. The engine is over `blocks_needed` blocks or more, and nobody else's."""
    rates, runs = ReachedRates(engine.model_cost, threads), []
    engine.use_threads(threads)
    for number in range(REPEATS + 1):
        run = _Run(engine, limits, rates if number else None, clock)  # the first finds caches cold
        runs.append((run.generate([PROMPT_TOKENS]), run.generate([PROMPT_TOKENS // 4] * BATCH)))
    flops_per_s, bytes_per_s = rates.flops_per_s, rates.bytes_per_s
    assert flops_per_s is not None
    assert bytes_per_s is not None
    best = runs[1:]
    return MeasuredRates(
        flops_per_s,
        bytes_per_s,
        prefill_tokens_per_s=PROMPT_TOKENS / min(one.prompt_s for one, _ in best),
        decode_tokens_per_s=(OUTPUT_TOKENS - 1) / min(one.decode_s for one, _ in best),
        batch_tokens_per_s=BATCH * (OUTPUT_TOKENS - 1) / min(eight.decode_s for _, eight in best),
    )


@dataclass(frozen=True, slots=True)
class _Times:
    prompt_s: float
    decode_s: float


class _Run:
    """Generates, and notes every step where there are rates to learn."""

    def __init__(self, engine: Engine, limits: Limits, rates: ReachedRates | None, clock: Callable[[], float]) -> None:
        self._engine, self._limits, self._rates, self._clock = engine, limits, rates, clock
        self._numbers = itertools.count()

    def generate(self, prompt_tokens: list[int]) -> _Times:
        scheduler, free_blocks = Scheduler(self._limits), itertools.count()
        for tokens in prompt_tokens:
            scheduler.add(self._sequence(tokens, free_blocks))
        prompt_s = decode_s = 0.0
        while slices := scheduler.plan_step():
            is_decoding = all(part.sequence.is_decoding for part in slices)
            began_s = self._clock()
            sampled = self._engine.step(slices)
            step_s = self._clock() - began_s
            if self._rates is not None:
                self._rates.note(size_of(slices), _ALL_CORES, step_s)
            prompt_s, decode_s = (prompt_s, decode_s + step_s) if is_decoding else (prompt_s + step_s, decode_s)
            scheduler.complete(slices, sampled)
        return _Times(prompt_s, decode_s)

    def _sequence(self, tokens: int, free_blocks: Iterator[int]) -> Sequence:
        sampling = SamplingParams(max_tokens=OUTPUT_TOKENS, seed=0, temperature=0.0)
        prompt = [1 + number % 1_000 for number in range(tokens)]
        block_count = -(-(tokens + OUTPUT_TOKENS) // self._limits.block_tokens)
        table = list(itertools.islice(free_blocks, block_count))
        return Sequence(f"measured-{next(self._numbers)}", prompt, sampling, table)


_ALL_CORES: Final = 1 << 16  # every step here has all that there are
