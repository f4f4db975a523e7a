"""What a router hears of its workers becomes at once who gets work."""

import pytest

from forebay.errors import DrainingError, NotAttachedError, QueueFullError
from forebay.fleet.member import Member
from forebay.role import Role
from forebay.router import health as module
from forebay.router.health import Health
from forebay.routing.breaker import FIRST_OPEN_S, LEAST_FAILURES
from forebay.routing.silence import Silence

MEMBERS = {"d0": Member("d0", Role.DECODE, "127.0.0.1:1", "n1"), "d1": Member("d1", Role.DECODE, "127.0.0.1:2", "n1")}


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_a_half_open_worker_is_shut_as_soon_as_its_probe_has_begun(clock: Clock) -> None:
    health = Health(lambda: MEMBERS, lambda: None, Silence(0.0))
    for number in range(LEAST_FAILURES):
        health.failed("d0", f"r{number}", NotAttachedError("no memory"))
    assert health.shut == {"d0"}
    clock.now_s += FIRST_OPEN_S
    health.succeeded("d1")
    assert health.shut == frozenset()
    health.begun("d0", "probe")
    assert health.shut == {"d0"}
    health.ended("d0", "probe")
    assert health.shut == frozenset()


@pytest.mark.parametrize("error", [DrainingError("it leaves"), QueueFullError("full")])
def test_what_is_nobodys_fault_opens_nothing(clock: Clock, error: Exception) -> None:
    health = Health(lambda: MEMBERS, lambda: None, Silence(0.0))
    for number in range(3 * LEAST_FAILURES):
        health.failed("d0", f"r{number}", error)  # type: ignore[arg-type]
    assert health.shut == frozenset()
