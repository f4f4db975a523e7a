"""What this router has sent to workers that their load reports cannot show yet. Pure.

Without it a burst between two reports would go to the one worker that looked idle.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# A report that was on its way when the request was sent does not contain it, so one more is waited for.
REPORTS_UNTIL_SEEN: Final = 2


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """How busy a worker is, as far as planning cares."""

    sequences: int = 0  # running and waiting
    queued_tokens: int = 0  # prompt tokens still to be computed

    def plus(self, other: "WorkerLoad") -> "WorkerLoad":
        """Both together."""
        return WorkerLoad(self.sequences + other.sequences, self.queued_tokens + other.queued_tokens)


@dataclass(frozen=True, slots=True)
class _Charge:
    load: WorkerLoad
    report_count: int


class InFlight:
    """Charges of running requests, by worker and request."""

    def __init__(self) -> None:
        self._charges: dict[str, dict[str, _Charge]] = {}

    def charge(self, worker_id: str, request_id: str, load: WorkerLoad, report_count: int) -> None:
        """A request was sent to a worker of which `report_count` load reports had been heard."""
        self._charges.setdefault(worker_id, {})[request_id] = _Charge(load, report_count)

    def release(self, worker_id: str, request_id: str) -> None:
        """The request has left the worker. Unknown ones are ignored."""
        charges = self._charges.get(worker_id)
        if charges is None:
            return
        charges.pop(request_id, None)
        if not charges:
            del self._charges[worker_id]

    def unseen(self, worker_id: str, report_count: int) -> WorkerLoad:
        """What the worker's `report_count`-th report may not contain."""
        total = WorkerLoad()
        for charge in self._charges.get(worker_id, {}).values():
            if report_count < charge.report_count + REPORTS_UNTIL_SEEN:
                total = total.plus(charge.load)
        return total

    def loads(self, reported: Mapping[str, WorkerLoad], report_counts: Mapping[str, int]) -> dict[str, WorkerLoad]:
        """Reported loads with what they cannot show added; workers neither reported nor charged are absent."""
        worker_ids = reported.keys() | self._charges.keys()
        return {
            worker_id: reported.get(worker_id, WorkerLoad()).plus(
                self.unseen(worker_id, report_counts.get(worker_id, 0))
            )
            for worker_id in worker_ids
        }
