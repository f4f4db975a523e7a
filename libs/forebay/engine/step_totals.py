"""What some steps cost and took together, and how near they came to the machine's peaks. Pure."""

from dataclasses import dataclass

from forebay.engine.roofline import Bound
from forebay.engine.step_cost import StepCost


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step. bound: None while the machine's peaks are not known."""

    busy_s: float
    cost: StepCost
    bound: Bound | None


@dataclass(frozen=True, slots=True)
class StepTotals:
    """Sums over steps. compared_s: seconds of those whose bound is known; the bounds are sums over these."""

    step_count: int = 0
    busy_s: float = 0.0
    operations: int = 0
    moved_bytes: int = 0
    compared_s: float = 0.0
    arithmetic_s: float = 0.0
    memory_s: float = 0.0

    def plus(self, step: MeasuredStep) -> "StepTotals":
        """With one step more."""
        bound = step.bound
        return StepTotals(
            self.step_count + 1,
            self.busy_s + step.busy_s,
            self.operations + step.cost.operations,
            self.moved_bytes + step.cost.moved_bytes,
            self.compared_s if bound is None else self.compared_s + step.busy_s,
            self.arithmetic_s if bound is None else self.arithmetic_s + bound.arithmetic_s,
            self.memory_s if bound is None else self.memory_s + bound.memory_s,
        )

    def since(self, earlier: "StepTotals") -> "StepTotals":
        """Of the steps that came after `earlier` was taken."""
        return StepTotals(
            self.step_count - earlier.step_count,
            self.busy_s - earlier.busy_s,
            self.operations - earlier.operations,
            self.moved_bytes - earlier.moved_bytes,
            self.compared_s - earlier.compared_s,
            self.arithmetic_s - earlier.arithmetic_s,
            self.memory_s - earlier.memory_s,
        )

    @property
    def flops_utilization(self) -> float | None:
        """Share of the time that the arithmetic alone would take at its peak; None: no step has been compared."""
        return self.arithmetic_s / self.compared_s if self.compared_s > 0 else None

    @property
    def bandwidth_utilization(self) -> float | None:
        """Share of the time that moving the bytes alone would take at its peak; None: no step has been compared."""
        return self.memory_s / self.compared_s if self.compared_s > 0 else None

    @property
    def operation_rate(self) -> float | None:
        """Operations of the model per second; None: there was no step."""
        return self.operations / self.busy_s if self.busy_s > 0 else None

    @property
    def memory_rate(self) -> float | None:
        """Bytes per second; None: there was no step."""
        return self.moved_bytes / self.busy_s if self.busy_s > 0 else None
