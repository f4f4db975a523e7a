"""Circuit breakers: never two probes at once, whatever order things happen in; and who has fallen silent."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.role import Role
from forebay.routing.breaker import FIRST_OPEN_S, LEAST_FAILURES, MOST_OPEN_S, Breakers
from forebay.routing.silence import Silence

WORKERS = ("w0", "w1")
workers = st.sampled_from(WORKERS)


class BreakerMachine(RuleBasedStateMachine):
    """A router that sends requests to workers which are not shut, and hears of their ends in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.breakers = Breakers()
        self.now_s = 0.0
        self.count = 0
        self.open: dict[str, tuple[str, bool]] = {}  # request: its worker, and whether it was sent to a half-open one
        self.failures = dict.fromkeys(WORKERS, 0)  # in a row
        self.has_opened = dict.fromkeys(WORKERS, False)

    def shut(self) -> frozenset[str]:
        return self.breakers.shut(self.now_s)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(worker=workers)
    def begin(self, worker: str) -> None:
        if worker in self.shut():
            return
        self.count += 1
        request = f"r{self.count}"
        is_probe = self.breakers.begun(worker, request, self.now_s)
        assert is_probe == self.has_opened[worker] == (worker in self.shut())
        self.open[request] = worker, self.has_opened[worker]

    @precondition(lambda self: self.open)
    @rule(data=st.data(), end=st.sampled_from(["token", "failure", "cancel"]))
    def end(self, data: st.DataObject, end: str) -> None:
        request = data.draw(st.sampled_from(sorted(self.open)))
        worker, _ = self.open.pop(request)
        if end == "token":
            self.breakers.succeeded(worker)
            self.failures[worker], self.has_opened[worker] = 0, False
            assert worker not in self.shut(), "a worker that works is not kept from it"
            self.open = {one: (at, probes and at != worker) for one, (at, probes) in self.open.items()}
        elif end == "failure":
            self.breakers.failed(worker, request, self.now_s)
            self.failures[worker] += 1
            self.has_opened[worker] |= self.failures[worker] >= LEAST_FAILURES
        self.breakers.ended(worker, request)

    @invariant()
    def one_probe_at_a_time(self) -> None:
        for worker in WORKERS:
            assert sum(at == worker and probes for at, probes in self.open.values()) <= 1

    @invariant()
    def few_failures_shut_nobody(self) -> None:
        for worker in self.shut():
            assert self.failures[worker] >= LEAST_FAILURES

    @invariant()
    def nobody_is_shut_for_ever(self) -> None:
        probed = {at for at, probes in self.open.values() if probes}
        assert self.breakers.shut(self.now_s + MOST_OPEN_S) <= probed


TestBreakers = BreakerMachine.TestCase
TestBreakers.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def opened() -> Breakers:
    breakers = Breakers()
    for number in range(LEAST_FAILURES):
        breakers.failed("w0", f"r{number}", 0.0)
    return breakers


def test_a_failed_probe_doubles_the_time_and_a_good_one_ends_it() -> None:
    breakers = opened()
    assert breakers.shut(FIRST_OPEN_S - 0.01) == {"w0"}
    assert breakers.shut(FIRST_OPEN_S) == frozenset()
    breakers.begun("w0", "probe", FIRST_OPEN_S)
    assert breakers.shut(FIRST_OPEN_S) == {"w0"}
    breakers.failed("w0", "probe", FIRST_OPEN_S)
    assert breakers.shut(3 * FIRST_OPEN_S - 0.01) == {"w0"}
    breakers.begun("w0", "another", 3 * FIRST_OPEN_S)
    breakers.succeeded("w0")
    assert breakers.shut(3 * FIRST_OPEN_S) == frozenset()


def test_a_probe_that_is_cancelled_leaves_its_turn_to_another() -> None:
    breakers = opened()
    breakers.begun("w0", "probe", FIRST_OPEN_S)
    breakers.ended("w0", "probe")
    assert breakers.shut(FIRST_OPEN_S) == frozenset()


def test_requests_that_were_there_before_say_nothing_new() -> None:
    breakers = opened()
    breakers.begun("w0", "probe", FIRST_OPEN_S)
    breakers.failed("w0", "old", FIRST_OPEN_S)
    breakers.ended("w0", "old")
    assert breakers.shut(FIRST_OPEN_S) == {"w0"}, "the probe is under way"
    breakers.keep({"w1"})
    assert breakers.shut(FIRST_OPEN_S) == frozenset()


ROLES = {"p0": Role.PREFILL, "d0": Role.DECODE, "d1": Role.DECODE}


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(sorted(ROLES)) | st.none()), max_size=40))
def test_who_was_not_heard_is_silent_as_long_as_another_of_the_role_is(script) -> None:  # type: ignore[no-untyped-def]
    silence, now_s, anybody_s = Silence(2.5), 0.0, 0.0
    silence.silent(ROLES, now_s)
    heard_s = dict.fromkeys(ROLES, 0.0)
    for wait_s, worker in script:
        now_s += wait_s
        if worker is not None:
            if now_s - anybody_s >= 1.5:
                heard_s = dict.fromkeys(ROLES, now_s)
            silence.heard(worker, now_s)
            heard_s[worker] = anybody_s = now_s
        late = {one for one in ROLES if now_s - heard_s[one] >= 2.5}
        silent = silence.silent(ROLES, now_s)
        assert silent == ({one for one in ("d0", "d1") if one in late} if not {"d0", "d1"} <= late else set())


@given(st.floats(0, 60), st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_nobody_is_silent_for_a_gap_in_which_nobody_was_heard(gap_s: float, phases: list[float]) -> None:
    """A partition from NATS: afterwards each is heard within a second, one after the other."""
    silence = Silence(2.5)
    silence.silent(ROLES, 0.0)
    for one in ROLES:
        silence.heard(one, 0.0)
    for phase_s, one in sorted(zip(phases, ROLES, strict=True)):
        now_s = gap_s + phase_s * 0.999
        assert silence.silent(ROLES, now_s) == frozenset()
        silence.heard(one, now_s)
        assert silence.silent(ROLES, now_s) == frozenset()


def test_silence_can_be_switched_off_and_a_new_worker_has_its_time() -> None:
    off, on = Silence(0.0), Silence(2.5)
    for silence in (off, on):
        silence.silent({"d0": Role.DECODE}, 0.0)
    assert off.silent({"d0": Role.DECODE, "d1": Role.DECODE}, 60.0) == frozenset()
    assert on.silent({"d0": Role.DECODE, "d1": Role.DECODE}, 60.0) == {"d0"}
    on.heard("d0", 61.0)
    assert on.silent({"d0": Role.DECODE, "d1": Role.DECODE}, 61.0) == frozenset()
