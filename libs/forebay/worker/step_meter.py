"""What a worker's steps cost and took since its start, apart for prompts and for generating.

The engine's thread notes its steps here, in a few microseconds each; anybody may read. Exports nothing.
"""

from enum import Enum

from forebay.engine.reached_rates import ReachedRates
from forebay.engine.roofline import Roofline
from forebay.engine.step_cost import ModelCost
from forebay.engine.step_size import size_of
from forebay.engine.step_totals import MeasuredStep, StepTotals
from forebay.engine.types import Slice
from forebay.kernels.peaks import Peaks


class Phase(Enum):
    """Which steps. The value is that of the attribute `forebay.phase`."""

    PREFILL = "prefill"  # with tokens of a prompt, whatever else is in them
    DECODE = "decode"  # that only generate


class StepMeter:
    """Totals by phase. Each is a value that is replaced, so that a reader on another thread sees one step or none."""

    def __init__(self, model: ModelCost, core_count: int = 1) -> None:
        """Args: core_count: that a step uses when the worker has them all."""
        self.model = model
        self.reached = ReachedRates(model, core_count)
        self._roofline: Roofline | None = None
        self._totals = dict.fromkeys(Phase, StepTotals())

    def use_peaks(self, peaks: Peaks) -> None:
        """From the next step on steps are compared with these. Callable from any thread."""
        self._roofline = Roofline(self.model, peaks)
        self.reached.expect(peaks)

    def note(self, slices: list[Slice], cores: int, busy_s: float) -> MeasuredStep:
        """Counts a step that has been computed on so many cores, before the scheduler takes it in."""
        size = size_of(slices)
        cost = self.model.of(size)
        roofline = self._roofline
        bound = None if roofline is None else roofline.bound(size, cost, cores)
        step = MeasuredStep(busy_s, cost, bound)
        self.reached.note(size, cores, busy_s)
        phase = Phase.DECODE if all(part.sequence.is_decoding for part in slices) else Phase.PREFILL
        self._totals[phase] = self._totals[phase].plus(step)
        return step

    def totals(self, phase: Phase) -> StepTotals:
        """As they are now."""
        return self._totals[phase]
