"""What this router has sent to workers, or has heard the end of, that their load reports cannot show yet. Pure.

Without it a burst between two reports would go to the one worker that looked idle, and a worker that has just become
idle would look busy until its next report.
"""

from dataclasses import dataclass
from typing import Final

ON_ITS_WAY_S: Final = 0.05
"""A report that is heard so soon after a request was sent, or had ended, may have been made before."""


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """How busy a worker is, as far as planning cares. seen_s: when its queue was; it has been worked on since.

    queued_realtime_tokens: of the queued ones, those that come before any of the other tiers.
    """

    sequences: int = 0  # running and waiting
    queued_tokens: int = 0  # prompt tokens still to be computed
    context_tokens: int = 0  # whose KV its sequences hold
    seen_s: float = 0.0
    queued_realtime_tokens: int = 0

    def plus(self, other: "WorkerLoad") -> "WorkerLoad":
        """Both together, as if the queues had been seen when the later one was."""
        return WorkerLoad(
            self.sequences + other.sequences,
            self.queued_tokens + other.queued_tokens,
            self.context_tokens + other.context_tokens,
            max(self.seen_s, other.seen_s),
            self.queued_realtime_tokens + other.queued_realtime_tokens,
        )


@dataclass(frozen=True, slots=True)
class _Charge:
    load: WorkerLoad
    since_s: float


class InFlight:
    """Charges of running requests, by worker and request, and those that ended since a worker's last report.

    Times are those of one clock of the caller's.
    """

    def __init__(self) -> None:
        self._charges: dict[str, dict[str, _Charge]] = {}
        self._ended: dict[str, list[_Charge]] = {}

    def charge(self, worker_id: str, request_id: str, load: WorkerLoad, now_s: float) -> None:
        """A request was sent to a worker.

        Of one that is there already only what it is now counts; it is as well known as it was.
        """
        charges = self._charges.setdefault(worker_id, {})
        known = charges.get(request_id)
        charges[request_id] = _Charge(load, now_s if known is None else known.since_s)

    def release(self, worker_id: str, request_id: str, reported_s: float, now_s: float) -> None:
        """The request has left the worker, which was heard of at reported_s. Unknown ones are ignored."""
        charges = self._charges.get(worker_id, {})
        charge = charges.pop(request_id, None)
        if charge is None:
            return
        if not charges:
            del self._charges[worker_id]
        if _is_known(charge.since_s, reported_s):
            self._ended.setdefault(worker_id, []).append(_Charge(charge.load, now_s))

    def unseen(self, worker_id: str, reported_s: float) -> WorkerLoad:
        """What the report that was heard then does not contain."""
        unseen = [
            one.load for one in self._charges.get(worker_id, {}).values() if not _is_known(one.since_s, reported_s)
        ]
        if not unseen:
            return WorkerLoad()
        # Summed field by field: a load made for each of them would cost more than all the rest.
        return WorkerLoad(
            sum([load.sequences for load in unseen]),
            sum([load.queued_tokens for load in unseen]),
            sum([load.context_tokens for load in unseen]),
            max([load.seen_s for load in unseen]),
            sum([load.queued_realtime_tokens for load in unseen]),
        )

    def load(self, worker_id: str, reported: WorkerLoad, reported_s: float) -> WorkerLoad:
        """What the worker said in the report that was heard then, corrected by what that cannot show."""
        ended = self._ended.get(worker_id)
        if ended is not None:
            ended = [one for one in ended if not _is_known(one.since_s, reported_s)]
            if ended:
                self._ended[worker_id] = ended
            else:
                del self._ended[worker_id]
            for one in ended:
                reported = _less(reported, one.load)
        return reported.plus(self.unseen(worker_id, reported_s))

    def forget(self, worker_id: str) -> None:
        """The worker has left. What still runs there is released later."""
        self._ended.pop(worker_id, None)


def _less(load: WorkerLoad, ended: WorkerLoad) -> WorkerLoad:
    return WorkerLoad(
        max(0, load.sequences - ended.sequences),
        max(0, load.queued_tokens - ended.queued_tokens),
        max(0, load.context_tokens - ended.context_tokens),
        load.seen_s,
        max(0, load.queued_realtime_tokens - ended.queued_realtime_tokens),
    )


def _is_known(since_s: float, reported_s: float) -> bool:
    return reported_s >= since_s + ON_ITS_WAY_S
