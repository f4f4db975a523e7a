"""An average that follows what it is shown, and that no single sample can carry away. Pure."""

from dataclasses import dataclass
from typing import Final

DEFAULT_LEARNING_RATE: Final = 0.25
OUTLIER_FACTOR: Final = 4.0
"""A sample counts as at most so many times the average and at least that part of it: one stall moves
the average by a factor of 1.75 and no more, at the default rate."""


@dataclass(slots=True)
class BoundedAverage:
    """Exponentially weighted, of positive numbers; None before the first sample."""

    value: float | None = None
    learning_rate: float = DEFAULT_LEARNING_RATE

    def take(self, sample: float) -> None:
        """One sample more."""
        if self.value is None:
            self.value = sample
            return
        bounded = min(max(sample, self.value / OUTLIER_FACTOR), self.value * OUTLIER_FACTOR)
        self.value += self.learning_rate * (bounded - self.value)
