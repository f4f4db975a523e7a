"""How a node's cores are divided among the workers that compute now. Pure: what it is told decides, for all alike."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

LEAST_URGENT: Final = 2
"""Priorities beyond this one weigh no less."""
WEIGHT_RATIO: Final = 3
"""What one step of priority weighs against the next: REALTIME 9, BATCH 3, BACKUP 1."""


@dataclass(frozen=True, slots=True)
class StepWork:
    """What a worker computes in one step.

    priority: of the most urgent sequence in it, 0 the most urgent. step_slo_s: how long a step may take, where it
    decodes; None: it computes prompts alone.
    """

    priority: int = 0
    step_slo_s: float | None = None


@lru_cache(maxsize=1024)
def divide_cores(core_count: int, priorities: tuple[int, ...]) -> tuple[int, ...]:
    """Cores of each worker, in the order given, by the priority of what it computes.

    Each has one, also where there are more workers than cores; the rest goes by weight. What is left by rounding goes
    to the heaviest, but to equals together or not at all. So equals have the same, the more urgent never less, and the
    sum is at most max(core_count, workers).
    """
    weights = [WEIGHT_RATIO ** (LEAST_URGENT - min(priority, LEAST_URGENT)) for priority in priorities]
    spare = max(0, core_count - len(weights))
    extra = {weight: spare * weight // sum(weights) for weight in weights}
    counts = Counter(weights)
    left = spare - sum(extra[weight] * count for weight, count in counts.items())
    for weight in sorted(counts, reverse=True):
        if counts[weight] > left:
            break
        extra[weight] += 1
        left -= counts[weight]
    return tuple(1 + extra[weight] for weight in weights)
