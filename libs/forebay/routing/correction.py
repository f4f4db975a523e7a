"""What predictions were wrong by, learned from what requests then took. Pure.

The formulas know neither caches nor batches of odd sizes nor what else a host does. So each worker has a factor per
phase and magnitude (of prompt tokens, or of sequences in a step) that its predicted seconds are multiplied by. One
request moves a factor little, however wrong its prediction was, and no factor leaves its bounds.
"""

import math
from collections.abc import Container
from enum import Enum
from typing import Final

LEAST_FACTOR: Final = 0.25
MOST_FACTOR: Final = 4.0
_MOST_LOG: Final = math.log(MOST_FACTOR)
_SURPRISE_LOG: Final = math.log(1.5)
"""A ratio counts as at most so far from what was expected."""
_LEARNING_RATE: Final = 0.2
_ANY: Final = -1  # all magnitudes together
DEFAULT_PATH_S: Final = 0.005
_MOST_PATH_S: Final = 0.25


class Phase(Enum):
    """What a worker does for a request."""

    PREFILL = "prefill"
    DECODE = "decode"

    __hash__ = object.__hash__  # members are alone of their kind; Enum's own takes a call of Python a look-up


class RatioEstimate:
    """A clamped, exponentially weighted mean of logarithms of ratios; its `value` is in LEAST_FACTOR..MOST_FACTOR."""

    __slots__ = ("_count", "_log", "value")

    def __init__(self) -> None:
        self._log = 0.0
        self._count = 0
        self.value = 1.0

    def take(self, ratio: float) -> None:
        """One ratio more, > 0. The first weigh more, since nothing is known yet."""
        surprise = max(-_SURPRISE_LOG, min(_SURPRISE_LOG, math.log(ratio) - self._log))
        self._count += 1
        self._log += max(_LEARNING_RATE, 1.0 / (self._count + 1)) * surprise
        self._log = max(-_MOST_LOG, min(_MOST_LOG, self._log))
        self.value = min(MOST_FACTOR, max(LEAST_FACTOR, math.exp(self._log)))


class Corrections:
    """Factors by worker, phase and magnitude: powers of two, so a few dozen of some 100 bytes for each worker.

    A magnitude that was never seen takes the factor of all of that worker's phase together.
    """

    def __init__(self) -> None:
        self._estimates: dict[str, dict[tuple[Phase, int], RatioEstimate]] = {}
        self._path_s = dict.fromkeys((False, True), DEFAULT_PATH_S)

    def factor(self, worker_id: str, phase: Phase, amount: int) -> float:
        """What predicted seconds are to be multiplied by. amount: prompt tokens, or sequences in the step."""
        estimates = self._estimates.get(worker_id)
        if estimates is None:
            return 1.0
        estimate = estimates.get((phase, amount.bit_length())) or estimates.get((phase, _ANY))
        return 1.0 if estimate is None else estimate.value

    def learn(self, worker_id: str, phase: Phase, amount: int, ratio: float) -> None:
        """What took `ratio` times what was predicted without correction. Ratios that are none teach nothing."""
        if not 0.0 < ratio < math.inf:
            return
        estimates = self._estimates.setdefault(worker_id, {})
        for magnitude in (amount.bit_length(), _ANY):
            estimates.setdefault((phase, magnitude), RatioEstimate()).take(ratio)

    def path_s(self, is_split: bool) -> float:
        """Seconds from planning to the first token that no worker's queue or prefill explains: messages, mostly."""
        return self._path_s[is_split]

    def learn_path(self, is_split: bool, seconds: float) -> None:
        """A request took so many of these."""
        known_s = self._path_s[is_split]
        bounded_s = min(max(seconds, 0.0), 2 * known_s + 0.001, _MOST_PATH_S)
        self._path_s[is_split] = known_s + _LEARNING_RATE * (bounded_s - known_s)

    def keep(self, worker_ids: Container[str]) -> None:
        """Forgets every worker that is not one of these."""
        for worker_id in [known for known in self._estimates if known not in worker_ids]:
            del self._estimates[worker_id]


UNCORRECTED: Final = Corrections()
"""To be read only."""
