"""What this router has sent to workers, or has heard the end of, that their load reports cannot show yet. Pure.

Without it a burst between two reports would go to the one worker that looked idle, and a worker that has just become
idle would look busy until its next report.
"""

from dataclasses import dataclass
from typing import Final

# A report that was on its way when the request was sent does not contain it, so one more is waited for.
REPORTS_UNTIL_SEEN: Final = 2
# One that was on its way when the request ended does, but the next does not.
REPORTS_UNTIL_GONE: Final = 1


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """How busy a worker is, as far as planning cares. seen_s: when its queue was; it has been worked on since."""

    sequences: int = 0  # running and waiting
    queued_tokens: int = 0  # prompt tokens still to be computed
    context_tokens: int = 0  # whose KV its sequences hold
    seen_s: float = 0.0

    def plus(self, other: "WorkerLoad") -> "WorkerLoad":
        """Both together, as if the queues had been seen when the later one was."""
        return WorkerLoad(
            self.sequences + other.sequences,
            self.queued_tokens + other.queued_tokens,
            self.context_tokens + other.context_tokens,
            max(self.seen_s, other.seen_s),
        )


@dataclass(frozen=True, slots=True)
class _Charge:
    load: WorkerLoad
    report_count: int


class InFlight:
    """Charges of running requests, by worker and request, and those that ended since a worker's last reports."""

    def __init__(self) -> None:
        self._charges: dict[str, dict[str, _Charge]] = {}
        self._ended: dict[str, list[_Charge]] = {}

    def charge(self, worker_id: str, request_id: str, load: WorkerLoad, report_count: int) -> None:
        """A request was sent to a worker of which `report_count` load reports had been heard.

        Of one that is there already only what it is now counts; it is as well known as it was.
        """
        charges = self._charges.setdefault(worker_id, {})
        known = charges.get(request_id)
        charges[request_id] = _Charge(load, report_count if known is None else known.report_count)

    def release(self, worker_id: str, request_id: str, report_count: int) -> None:
        """The request has left the worker, of which so many reports had been heard. Unknown ones are ignored."""
        charges = self._charges.get(worker_id, {})
        charge = charges.pop(request_id, None)
        if charge is None:
            return
        if not charges:
            del self._charges[worker_id]
        if charge.report_count < report_count:  # a report may contain it
            self._ended.setdefault(worker_id, []).append(_Charge(charge.load, report_count))

    def unseen(self, worker_id: str, report_count: int) -> WorkerLoad:
        """What the worker's `report_count`-th report may not contain."""
        total = WorkerLoad()
        for charge in self._charges.get(worker_id, {}).values():
            if report_count < charge.report_count + REPORTS_UNTIL_SEEN:
                total = total.plus(charge.load)
        return total

    def load(self, worker_id: str, reported: WorkerLoad, report_count: int) -> WorkerLoad:
        """What the worker said in its `report_count`-th report, corrected by what that cannot show."""
        ended = self._ended.get(worker_id)
        if ended is not None:
            ended = [one for one in ended if report_count < one.report_count + REPORTS_UNTIL_GONE]
            if ended:
                self._ended[worker_id] = ended
            else:
                del self._ended[worker_id]
            for one in ended:
                reported = _less(reported, one.load)
        return reported.plus(self.unseen(worker_id, report_count))

    def forget(self, worker_id: str) -> None:
        """The worker has left. What still runs there is released later."""
        self._ended.pop(worker_id, None)


def _less(load: WorkerLoad, ended: WorkerLoad) -> WorkerLoad:
    return WorkerLoad(
        max(0, load.sequences - ended.sequences),
        max(0, load.queued_tokens - ended.queued_tokens),
        max(0, load.context_tokens - ended.context_tokens),
        load.seen_s,
    )
