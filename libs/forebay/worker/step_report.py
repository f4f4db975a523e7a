"""What the engine's thread tells of its steps, and when. Knows no thread and no loop."""

from dataclasses import dataclass
from typing import Final

from forebay.engine.scheduler import BlocksFilled, Failed, Finished, NewToken, Outcome
from forebay.engine.step_totals import MeasuredStep

DEFAULT_GATHER_S: Final = 0.15
"""Seven messages a second are enough to read along."""
_STREAMS_OF_ONE_GATHERING: Final = 6
_LONGEST_FACTOR: Final = 2.0


@dataclass(frozen=True, slots=True)
class Share:
    """What a step computed of one sequence: token_count positions from first_position on."""

    sequence_id: str
    first_position: int
    token_count: int


@dataclass(frozen=True, slots=True)
class Report:
    """News of one step, or of commands alone: then there are no shares.

    removed: cancelled sequences that are written to no more. stuck: sequences when none of them has room to go on.
    measured: what the step cost and took, where that is measured.
    """

    outcomes: tuple[Outcome, ...]
    removed: tuple[str, ...]
    shares: tuple[Share, ...]
    stuck: frozenset[str]
    began_s: float
    ended_s: float
    measured: MeasuredStep | None = None


@dataclass(frozen=True, slots=True)
class Telling:
    """Reports to be told together. is_due: whatever still waits to be passed on has waited long enough."""

    reports: list[Report]
    is_due: bool


class ReportGathering:
    """Holds reports back while they can wait.

    Each time the event loop wakes, and each message on its way to the client, costs the cores that a fast engine's next
    step computes with: on two cores a step of 3.8 ms takes 4.7. What a client or a sequence waits for goes at once:
    first tokens, ends, failures, blocks to be asked for, the answer to a cancel.
    """

    def __init__(self, gather_s: float) -> None:
        """Args: gather_s: how long reports of later tokens are held back, up to twice as long with many."""
        self._gather_s = gather_s
        self._held: list[Report] = []
        self._started: set[str] = set()  # sequences whose first token has been told
        self._due_s = float("-inf")  # when they were last

    def add(self, report: Report) -> Telling | None:
        """Takes a report in. Returns what should be told now; None: nothing."""
        if report.outcomes or report.removed or report.shares or report.stuck:
            self._held.append(report)
        is_urgent = self._is_urgent(report)
        # An urgent one does not put the others off: they are due when they would have been without it.
        is_due = not report.shares or report.ended_s - self._due_s >= self._gather_s * _factor(len(report.shares))
        if not self._held or not (is_urgent or is_due):
            return None
        if is_due:
            self._due_s = report.ended_s
        held, self._held = self._held, []
        return Telling(held, is_due)

    def rest(self) -> Telling:
        """All that is held, when nothing more will come."""
        held, self._held = self._held, []
        return Telling(held, is_due=True)

    def _is_urgent(self, report: Report) -> bool:
        """More than another token of a sequence that has had its first."""
        is_urgent = bool(report.removed)
        self._started.difference_update(report.removed)
        for outcome in report.outcomes:
            if not isinstance(outcome, NewToken):
                is_urgent = is_urgent or not isinstance(outcome, BlocksFilled)
                if isinstance(outcome, Finished | Failed):
                    self._started.discard(outcome.sequence_id)
            elif outcome.sequence_id not in self._started:
                self._started.add(outcome.sequence_id)
                is_urgent = True
        return is_urgent


def _factor(stream_count: int) -> float:
    """Each telling goes to as many clients as there are sequences, and costs by their number."""
    return min(max(1.0, stream_count / _STREAMS_OF_ONE_GATHERING), _LONGEST_FACTOR)
