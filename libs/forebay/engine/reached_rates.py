"""What a worker's steps reach, from those that tell it: prompts alone for arithmetic, a token alone for memory. Pure.

A step that mixes both, or several sequences, is bound by neither alone; one on part of the cores says what that part
reaches. Until there are such steps the machine's peaks say what to expect.
"""

from typing import Final

from forebay.bounded_average import BoundedAverage
from forebay.engine.roofline import Roofline
from forebay.engine.step_cost import ModelCost, StepSize
from forebay.kernels.peaks import Peaks

LEAST_PROMPT_ROWS: Final = 64
"""Fewer are bound by the weights' bytes rather than by arithmetic."""
LEAST_SAMPLES: Final = 2
"""The first steps of a process find its caches cold."""
FLOPS_SHARE: Final = 0.7
BYTES_SHARE: Final = 0.6
"""Of the peaks, reached by our kernels on the machines we know; expected until steps have been measured."""
_LEARNING_RATE: Final = 0.1


class ReachedRates:
    """Two averages: seconds per operation of the model, and seconds per byte."""

    def __init__(self, model: ModelCost, core_count: int) -> None:
        """Args: core_count: that a step uses when the worker has them all."""
        self._model = model
        self._core_count = core_count
        self._operation_s = BoundedAverage(learning_rate=_LEARNING_RATE)
        self._byte_s = BoundedAverage(learning_rate=_LEARNING_RATE)
        self._samples = {"operations": 0, "bytes": 0}
        self._expected: tuple[float, float] | None = None

    def expect(self, peaks: Peaks) -> None:
        """What the machine can do at most."""
        size = StepSize(row_count=1, sampled_row_count=0, attended_tokens=0, context_tokens=0)
        bound = Roofline(self._model, peaks).bound(size, self._model.of(size), peaks.threads)
        flops_per_s = self._model.row_operations.model / bound.arithmetic_s
        self._expected = flops_per_s * FLOPS_SHARE, peaks.read_bytes_per_s * BYTES_SHARE

    def note(self, size: StepSize, cores: int, busy_s: float) -> None:
        """A step of that size took so long on so many cores."""
        if cores < self._core_count or busy_s <= 0:
            return
        cost = self._model.of(size)
        if size.row_count == 1:
            self._samples["bytes"] += 1
            self._byte_s.take(busy_s / cost.moved_bytes)
        elif size.row_count >= LEAST_PROMPT_ROWS and size.sampled_row_count <= 1:
            self._samples["operations"] += 1
            self._operation_s.take(busy_s / cost.operations)

    @property
    def flops_per_s(self) -> float | None:
        """Of prompts; None: neither measured nor to be expected."""
        return self._rate(self._operation_s, "operations", 0)

    @property
    def bytes_per_s(self) -> float | None:
        """Of generating; None: neither measured nor to be expected."""
        return self._rate(self._byte_s, "bytes", 1)

    def _rate(self, seconds: BoundedAverage, kind: str, place: int) -> float | None:
        if seconds.value is not None and self._samples[kind] >= LEAST_SAMPLES:
            return 1.0 / seconds.value
        return None if self._expected is None else self._expected[place]
