"""What predictions were wrong by, learned from what requests then took. Pure.

The formulas know neither caches nor batches of odd sizes nor what else a host does. So each worker has a factor per
phase and magnitude (of prompt tokens, or of sequences in a step) that its predicted seconds are multiplied by. One
request moves a factor little, however wrong its prediction was, and no factor leaves its bounds.
"""

import math
from collections.abc import Container, Sequence
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt

LEAST_FACTOR: Final = 0.25
MOST_FACTOR: Final = 4.0
_MOST_LOG: Final = math.log(MOST_FACTOR)
_SURPRISE_LOG: Final = math.log(1.5)
"""A ratio counts as at most so far from what was expected."""
_LEARNING_RATE: Final = 0.2
_SPREAD_RATE: Final = 0.05
_NINE_IN_TEN: Final = 1.6  # mean absolute deviations of a normal distribution
_ANY: Final = -1  # all magnitudes together
_MAGNITUDES: Final = 32  # larger amounts count as of the largest
_NOBODY: Final = 0  # the slot of workers of which nothing is known
DEFAULT_PATH_S: Final = 0.005
_MOST_PATH_S: Final = 0.25


class Phase(IntEnum):
    """What a worker does for a request."""

    PREFILL = 0
    DECODE = 1


def magnitude_of(amount: int) -> int:
    """Its power of two."""
    return min(amount.bit_length(), _MAGNITUDES - 1)


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


class Spread:
    """How far predictions are from what happens, and so how much longer a request must be reckoned to take.

    `margin`: nine in ten took at most so many times what was predicted, if the errors' logarithms are spread normally.
    """

    __slots__ = ("_count", "_log", "margin")

    def __init__(self) -> None:
        self._log = 0.0
        self._count = 0
        self.margin = 1.0

    def take(self, ratio: float) -> None:
        """Something took so many times what was predicted; > 0."""
        self._count += 1
        surprise = min(abs(math.log(ratio)), _MOST_LOG)
        self._log += max(_SPREAD_RATE, 1.0 / (self._count + 1)) * (surprise - self._log)
        self.margin = math.exp(_NINE_IN_TEN * self._log)


class Corrections:
    """Factors by worker, phase and magnitude: powers of two, so a few dozen of some 100 bytes for each worker.

    A magnitude that was never seen takes the factor of all of that worker's phase together.

    The same as an array, for plans: `factors` by phase, magnitude and slot. Slots stay until `generation` changes.
    """

    def __init__(self) -> None:
        self._estimates: dict[str, dict[tuple[Phase, int], RatioEstimate]] = {}
        self._slots: dict[str, int] = {}
        self._free_slots: list[int] = []
        self.factors = np.ones((len(Phase), _MAGNITUDES, 1))
        self.generation = 0
        self._path_s = dict.fromkeys((False, True), DEFAULT_PATH_S)
        self.first_token = Spread()
        self.token = Spread()

    def factor(self, worker_id: str, phase: Phase, amount: int) -> float:
        """What predicted seconds are to be multiplied by. amount: prompt tokens, or sequences in the step."""
        estimates = self._estimates.get(worker_id)
        if estimates is None:
            return 1.0
        estimate = estimates.get((phase, magnitude_of(amount))) or estimates.get((phase, _ANY))
        return 1.0 if estimate is None else estimate.value

    def learn(self, worker_id: str, phase: Phase, amount: int, ratio: float) -> None:
        """What took `ratio` times what was predicted without correction. Ratios that are none teach nothing."""
        if not 0.0 < ratio < math.inf:
            return
        estimates = self._estimates.get(worker_id)
        if estimates is None:
            estimates = self._estimates[worker_id] = {}
            self._take_slot(worker_id)
        for magnitude in (magnitude_of(amount), _ANY):
            estimates.setdefault((phase, magnitude), RatioEstimate()).take(ratio)
        of_any = estimates[phase, _ANY]
        known = [estimates.get((phase, magnitude), of_any).value for magnitude in range(_MAGNITUDES)]
        self.factors[phase, :, self._slots[worker_id]] = known

    def slots_of(self, worker_ids: Sequence[str]) -> npt.NDArray[np.intp]:
        """Where the factors of these lie."""
        return np.array([self._slots.get(one, _NOBODY) for one in worker_ids], np.intp)

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
            slot = self._slots.pop(worker_id)
            self.factors[:, :, slot] = 1.0
            self._free_slots.append(slot)
            self.generation += 1

    def _take_slot(self, worker_id: str) -> None:
        if not self._free_slots:
            count = self.factors.shape[2]
            self.factors = np.concatenate((self.factors, np.ones_like(self.factors)), axis=2)
            self._free_slots = list(range(count, 2 * count))
        self._slots[worker_id] = self._free_slots.pop()
        self.generation += 1


UNCORRECTED: Final = Corrections()
"""To be read only."""
