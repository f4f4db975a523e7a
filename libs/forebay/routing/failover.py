"""When a request whose worker failed is tried again, and when it is given up. Pure: the time is an argument."""

from dataclasses import dataclass
from typing import Final

from forebay.errors import (
    Code,
    ForebayError,
    IsolatedError,
    NotAttachedError,
    StaleEpochError,
    UnknownSequenceError,
    WorkerLostError,
)

DEFAULT_PATIENCE_S: Final = 10.0
DEFAULT_MOST_LOST_WORKERS: Final = 3
FIRST_DELAY_S: Final = 0.02
MOST_DELAY_S: Final = 0.25

_ENDED_RIGHTS: Final = (StaleEpochError, UnknownSequenceError, NotAttachedError)


@dataclass(frozen=True, slots=True)
class FailoverLimits:
    """How long to go on.

    patience_s: seconds without a new token, from the first failure on, after which its last error is told; 0: nothing
    is tried again.
    most_lost_workers: so many workers that ended with the request in their hands make it the probable cause. One fewer
    make it suspect: it is tried once more, on a worker of its own, as of the BACKUP tier.
    """

    patience_s: float = DEFAULT_PATIENCE_S
    most_lost_workers: int = DEFAULT_MOST_LOST_WORKERS


class Failover:
    """The failures of one request. A token ends a run of them, but what a request killed stays counted.

    has_begun: workers had it before, at another router.
    """

    def __init__(self, limits: FailoverLimits, *, has_begun: bool = False) -> None:
        self._limits = limits
        self._lost_worker_ids: set[str] = set()
        self._failing_since_s: float | None = None
        self._tries = 0
        self._has_failed_over = has_begun

    @property
    def is_suspect(self) -> bool:
        """Whether the next worker must not have other requests that would be lost with it."""
        return len(self._lost_worker_ids) >= max(1, self._limits.most_lost_workers - 1)

    def passes(self, error: ForebayError) -> bool:
        """Whether another worker, or the same one later, may do what this error kept one from doing.

        Once a worker has had the request, that others are full is no reason to end it.
        """
        if self._has_failed_over and error.code is Code.RESOURCE_EXHAUSTED:
            return True
        return error.code is Code.UNAVAILABLE or isinstance(error, _ENDED_RIGHTS)

    def progressed(self) -> None:
        """A token came."""
        self._failing_since_s, self._tries = None, 0

    def delay_s(self, error: ForebayError, lost_worker_id: str | None, now_s: float) -> float:
        """Seconds until the next try.

        lost_worker_id: of the worker that ended, or fell silent, with the request in its hands; None: it said why.
        Raises: what the caller is to hear, when there is no next try: the error, or WorkerLostError for a request that
        is taken for what its workers died of.
        """
        if not self.passes(error):
            raise error
        if isinstance(error, IsolatedError):
            self._has_failed_over = True
            return MOST_DELAY_S  # nothing failed: its turn, or the worker's, is waited for as long as the caller waits
        if lost_worker_id is not None:
            self._lost_worker_ids.add(lost_worker_id)
        if len(self._lost_worker_ids) >= self._limits.most_lost_workers:
            raise WorkerLostError(
                f"{len(self._lost_worker_ids)} workers were lost with this request in their hands, so it is not tried"
                f" on another; the last: {error.message}",
                worker_id=lost_worker_id or "",
            )
        if self._failing_since_s is None:
            self._failing_since_s = now_s
        if now_s - self._failing_since_s >= self._limits.patience_s:
            raise error
        self._tries += 1
        self._has_failed_over = True
        return 0.0 if self._tries == 1 else min(MOST_DELAY_S, FIRST_DELAY_S * 2.0 ** (self._tries - 2))
