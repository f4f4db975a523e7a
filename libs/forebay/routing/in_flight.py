"""What this router has sent to workers that their load reports cannot show yet. Pure.

Without it a burst between two reports would go to the one worker that looked idle.
"""

from dataclasses import dataclass
from typing import Final

# A report that was on its way when the request was sent does not contain it, so one more is waited for.
REPORTS_UNTIL_SEEN: Final = 2


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """How busy a worker is, as far as planning cares."""

    sequences: int = 0  # running and waiting
    queued_tokens: int = 0  # prompt tokens still to be computed
    context_tokens: int = 0  # whose KV its sequences hold

    def plus(self, other: "WorkerLoad") -> "WorkerLoad":
        """Both together."""
        return WorkerLoad(
            self.sequences + other.sequences,
            self.queued_tokens + other.queued_tokens,
            self.context_tokens + other.context_tokens,
        )


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

    def load(self, worker_id: str, reported: WorkerLoad, report_count: int) -> WorkerLoad:
        """What the worker said in its `report_count`-th report, with what that cannot show added."""
        return reported.plus(self.unseen(worker_id, report_count))
