"""The engine in this process, without any service: what the mesh is measured against."""

import itertools
import random
import time
from collections.abc import Sequence as Tokens
from pathlib import Path

from forebay.chips import chip_class_named
from forebay.chips.kv_layout import layout_for
from forebay.engine.kv_memory import private_memory
from forebay.engine.load import load_engine
from forebay.engine.scheduler import Limits, NewToken, Scheduler
from forebay.engine.types import SamplingParams, Sequence
from forebay.models.model_file import open_model

_BLOCK_COUNT = 256


class BareEngine:
    """One engine with its scheduler and its own memory, as a worker runs them."""

    def __init__(self, model_path: Path, chip_class_name: str, threads: int) -> None:
        chip_class = chip_class_named(chip_class_name)
        model = open_model(model_path)
        layout = layout_for(model.config, chip_class)
        self._engine = load_engine(model, chip_class, private_memory(layout, _BLOCK_COUNT), threads)
        self._limits = Limits(layout.block_tokens, model.config.context_tokens, chip_class.chunk_tokens)
        self._numbers = itertools.count()

    def generate(self, prompts: Tokens[list[int]], max_tokens: int) -> tuple[float, float, int]:
        """Generates greedily for all prompts at once.

        Returns:
            Seconds to the first token of the first sequence, seconds in all, tokens generated.
        """
        scheduler = Scheduler(self._limits)
        free_blocks = iter(range(_BLOCK_COUNT))
        began_s = time.perf_counter()
        for prompt in prompts:
            sampling = SamplingParams(max_tokens=max_tokens, seed=0, temperature=0.0)
            sequence = Sequence(f"bare-{next(self._numbers)}", prompt, sampling, block_table=[])
            block_count = -(-(len(prompt) + max_tokens) // self._limits.block_tokens)
            sequence.block_table.extend(itertools.islice(free_blocks, block_count))
            scheduler.add(sequence)
        first_token_s, token_count = None, 0
        while slices := scheduler.plan_step():
            outcomes = scheduler.complete(slices, self._engine.step(slices))
            token_count += sum(isinstance(outcome, NewToken) for outcome in outcomes)
            if first_token_s is None and token_count:
                first_token_s = time.perf_counter() - began_s
        assert first_token_s is not None
        return first_token_s, time.perf_counter() - began_s, token_count


def random_prompt(numbers: random.Random, token_count: int) -> list[int]:
    """Token ids that no cache has seen."""
    return [numbers.randrange(1_000, 40_000) for _ in range(token_count)]
