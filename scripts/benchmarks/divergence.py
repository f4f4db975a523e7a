"""How far one model's predictions are from another's, summed up position by position. Knows no model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


@dataclass(slots=True)
class Divergence:
    """Of all positions added so far."""

    positions: int = 0
    kl_sum: float = 0.0
    agreements: int = 0

    def add(self, reference: Logits, other: Logits) -> None:
        """Takes one position in; both are [vocabulary]."""
        logs, other_logs = _log_softmax(reference), _log_softmax(other)
        self.positions += 1
        self.kl_sum += float(np.exp(logs) @ (logs - other_logs))
        self.agreements += int(reference.argmax() == other.argmax())

    @property
    def mean_kl(self) -> float:
        """KL(reference || other) in nats, on average."""
        return self.kl_sum / self.positions

    @property
    def top1(self) -> float:
        """The share of positions at which both hold the same token for the likeliest."""
        return self.agreements / self.positions


def total(parts: list[Divergence]) -> Divergence:
    """Of all positions together."""
    return Divergence(
        sum(one.positions for one in parts), sum(one.kl_sum for one in parts), sum(one.agreements for one in parts)
    )


def _log_softmax(logits: Logits) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
