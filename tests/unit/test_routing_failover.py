"""When a request is tried again, and when not."""

import pytest

from forebay.errors import (
    DeadlineExceededError,
    DrainingError,
    InvalidFieldError,
    IsolatedError,
    KvExhaustedError,
    NotAttachedError,
    NoWorkerError,
    NumericFailureError,
    QueueFullError,
    RequestCancelledError,
    StaleEpochError,
    UnknownSequenceError,
    WorkerLostError,
    WriterActiveError,
)
from forebay.routing.failover import MOST_DELAY_S, Failover, FailoverLimits

LOST = WorkerLostError("lost")


def test_the_first_try_is_at_once_and_the_later_ones_wait_longer() -> None:
    failover = Failover(FailoverLimits(patience_s=10))
    delays = [failover.delay_s(LOST, None, now_s=0) for _ in range(9)]
    assert delays[0] == 0
    assert delays == sorted(delays)
    assert delays[-1] == MOST_DELAY_S


def test_patience_counts_from_the_first_failure_without_a_token() -> None:
    failover = Failover(FailoverLimits(patience_s=2))
    failover.delay_s(LOST, None, now_s=100)
    failover.delay_s(LOST, None, now_s=101.9)
    failover.progressed()
    assert failover.delay_s(LOST, None, now_s=103) == 0, "a token came: the next failure is a first one"
    last = NoWorkerError("nobody")
    with pytest.raises(NoWorkerError) as caught:
        failover.delay_s(last, None, now_s=105)
    assert caught.value is last


def test_without_patience_nothing_is_tried_again() -> None:
    with pytest.raises(WorkerLostError):
        Failover(FailoverLimits(patience_s=0)).delay_s(LOST, None, now_s=7)


def test_what_ends_with_one_worker_after_the_other_is_not_tried_on_a_further_one() -> None:
    failover = Failover(FailoverLimits(most_lost_workers=3))
    for worker_id in ("a", "b", "b", "a"):
        failover.delay_s(LOST, worker_id, now_s=0)
        failover.progressed()
    with pytest.raises(WorkerLostError, match="3 workers were lost with this request in their hands") as caught:
        failover.delay_s(LOST, "c", now_s=0)
    assert caught.value.retry_after_s is None, "trying again would lose more"
    assert caught.value.metadata["worker_id"] == "c"


@pytest.mark.parametrize(
    "error",
    [
        LOST,
        DrainingError(""),
        NoWorkerError(""),
        WriterActiveError(""),
        StaleEpochError(""),
        UnknownSequenceError(""),
        NotAttachedError(""),
    ],
)
def test_what_passes_is_tried_again(error) -> None:  # type: ignore[no-untyped-def]
    assert Failover(FailoverLimits()).delay_s(error, None, now_s=0) == 0


@pytest.mark.parametrize(
    "error",
    [
        InvalidFieldError(""),
        NumericFailureError(""),
        KvExhaustedError(""),
        QueueFullError(""),
        DeadlineExceededError(""),
        RequestCancelledError(""),
    ],
)
def test_what_another_worker_would_say_too_is_told_at_once(error) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(type(error)):
        Failover(FailoverLimits()).delay_s(error, None, now_s=0)


@pytest.mark.parametrize("error", [QueueFullError(""), KvExhaustedError("")])
def test_a_request_that_a_worker_had_is_not_ended_because_others_are_full(error) -> None:  # type: ignore[no-untyped-def]
    failover = Failover(FailoverLimits())
    failover.delay_s(LOST, "a", now_s=0)
    failover.progressed()
    assert failover.delay_s(error, None, now_s=50) == 0


def test_a_worker_that_is_another_s_alone_is_waited_for_without_limit() -> None:
    failover = Failover(FailoverLimits(patience_s=1.0))
    for now_s in (0.0, 100.0, 200.0):
        assert failover.delay_s(IsolatedError("not alone"), None, now_s) == MOST_DELAY_S
    assert not failover.is_suspect
