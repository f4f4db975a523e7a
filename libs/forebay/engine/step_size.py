"""From a step's slices to the counts that its cost depends on. Pure."""

from collections.abc import Iterable

from forebay.engine.step_cost import StepSize
from forebay.engine.types import Slice


def size_of(slices: Iterable[Slice]) -> StepSize:
    """The size of a step that is planned, or computed and not yet taken in by the scheduler."""
    rows = sampled_rows = attended = contexts = 0
    for part in slices:
        count, sequence = part.token_count, part.sequence
        end = sequence.computed_tokens + count
        rows += count
        sampled_rows += end == sequence.token_count
        attended += count * (2 * end - count + 1) // 2  # end - count + 1 of the first row, end of the last
        contexts += end
    return StepSize(rows, sampled_rows, attended, contexts)
