"""How long a step would take at the machine's peaks, by arithmetic and by memory. Pure.

Arithmetic grows with the cores that a step uses. Memory bandwidth does not: it is that of one core times the cores, up
to what all of them reach together.
"""

from dataclasses import dataclass

from forebay.engine.step_cost import ModelCost, Operations, StepCost, StepSize
from forebay.kernels.peaks import Peaks


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds at the peaks of the cores used. A step takes at least the longer of both."""

    arithmetic_s: float
    memory_s: float


class Roofline:
    """One model on one machine."""

    def __init__(self, model: ModelCost, peaks: Peaks) -> None:
        self._peaks = peaks
        self._row_s = self._single_core_s(model.row_operations)
        self._head_s = self._single_core_s(model.head_operations)
        self._attention_s = self._single_core_s(model.attention_operations)

    def bound(self, size: StepSize, cost: StepCost, cores: int) -> Bound:
        """Of a step that uses so many cores."""
        single_core_s = (
            size.row_count * self._row_s
            + size.sampled_row_count * self._head_s
            + size.attended_tokens * self._attention_s
        )
        bytes_per_s = min(self._peaks.read_bytes_per_s, cores * self._peaks.single_read_bytes_per_s)
        return Bound(single_core_s / cores, cost.moved_bytes / bytes_per_s)

    def _single_core_s(self, operations: Operations) -> float:
        rates = self._peaks.operations_per_s
        return sum(count / rates[kind] for kind, count in operations.machine.items()) * self._peaks.threads
