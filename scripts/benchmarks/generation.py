"""One measured generation, whichever engine ran it, and what is asked of it. Judges nothing."""

import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Workload:
    """So many prompts of so many tokens, and so many steps after the prompts' own."""

    sequences: int
    prompt_tokens: int
    steps: int = 0

    def prompts(self, numbers: random.Random) -> list[list[int]]:
        """Prompts that no cache has seen."""
        return [random_prompt(numbers, self.prompt_tokens) for _ in range(self.sequences)]


@dataclass(frozen=True, slots=True)
class Generation:
    """Times of one greedy generation.

    prefill_s: until every prompt has its first token. step_s: of each step after that, in which every sequence gets one
    token. The phases are seconds by name, where the engine tells them.
    """

    sequences: int
    prompt_tokens: int
    prefill_s: float
    step_s: tuple[float, ...]
    first_token_ids: tuple[int, ...]
    prefill_phase_s: Mapping[str, float] = field(default_factory=dict)
    step_phase_s: Mapping[str, float] = field(default_factory=dict)  # of one step, on average

    @property
    def tokens_per_s(self) -> float:
        """Tokens generated per second after the prompts."""
        return self.sequences * len(self.step_s) / sum(self.step_s)

    @property
    def prompt_tokens_per_s(self) -> float:
        """Prompt tokens computed per second."""
        return self.sequences * self.prompt_tokens / self.prefill_s

    @property
    def median_step_s(self) -> float:
        """Seconds of the step in the middle."""
        return statistics.median(self.step_s)


class ContestantAbsentError(Exception):
    """An engine cannot be measured, or cannot any more; the message says why, in a few words."""


class Contestant(Protocol):
    """An engine that can be measured. Loaded, and idle between two calls."""

    def generate(self, prompts: list[list[int]], steps: int) -> Generation:
        """Computes the prompts, then `steps` steps of all sequences together, greedily, whatever tokens come.

        Raises ContestantAbsentError.
        """
        ...


def random_prompt(numbers: random.Random, token_count: int) -> list[int]:
    """Token ids of the middle of the vocabulary: no special ones."""
    return [numbers.randrange(1_000, 40_000) for _ in range(token_count)]
