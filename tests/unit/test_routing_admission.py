"""Admission: who begins, who waits, who is turned away. Random walks, and the cases that the rules were made for."""

import math
from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forebay.errors import DeadlineExceededError, QueueFullError
from forebay.routing.admission import Admission, AdmissionEffect, AdmissionLimits, Admit, Applicant, Refuse, Room
from forebay.routing.fair_share import MOST_TENANTS, FairShare
from forebay.routing.option import QosTier

FULL = Room(places=4, taken=4)


def applicant(
    name: str, tier: QosTier = QosTier.REALTIME, tenant: str = "", start_by_s: float = 0.0, give_up_s: float = math.inf
) -> Applicant:
    return Applicant(name, tier, tenant, 100, start_by_s, give_up_s)


def admitted(effects: list[AdmissionEffect]) -> list[str]:
    return [one.request_id for one in effects if isinstance(one, Admit)]


def refused(effects: list[AdmissionEffect]) -> list[str]:
    return [one.request_id for one in effects if isinstance(one, Refuse)]


def test_an_idle_fleet_admits_at_once() -> None:
    admission = Admission()
    assert admitted(admission.arrive(applicant("a"), Room(4, 0, 1), 0.0)) == ["a"]
    assert admission.waiting_count == 0


def test_where_there_are_no_workers_nobody_waits() -> None:
    admission = Admission()
    for tier in QosTier:
        assert admitted(admission.arrive(applicant(tier.value, tier), Room(0, 0), 0.0)) == [tier.value]


def test_batch_leaves_a_reserve_and_realtime_takes_it() -> None:
    admission = Admission(AdmissionLimits(reserved_share=0.25))
    room = Room(places=4, taken=3)
    assert admission.arrive(applicant("batch", QosTier.BATCH), room, 0.0) == []
    assert admitted(admission.arrive(applicant("chat"), room, 0.0)) == ["chat"]


def test_batch_runs_on_a_fleet_of_one_place() -> None:
    assert admitted(Admission().arrive(applicant("batch", QosTier.BATCH), Room(1, 0, 1), 0.0)) == ["batch"]


def test_realtime_overtakes_batch_in_line() -> None:
    admission = Admission()
    admission.arrive(applicant("batch", QosTier.BATCH), FULL, 0.0)
    admission.arrive(applicant("chat"), FULL, 0.0)
    assert admitted(admission.update(Room(4, 3), 0.0)) == ["chat"]
    admission.planned("chat")
    assert admitted(admission.update(Room(4, 2), 0.0)) == ["batch"]


def test_what_was_admitted_counts_until_it_is_planned() -> None:
    admission = Admission()
    for name in ("a", "b"):
        admission.arrive(applicant(name), FULL, 0.0)
    assert admitted(admission.update(Room(4, 3), 0.0)) == ["a"]
    assert admission.update(Room(4, 3), 0.0) == []
    admission.planned("a")
    assert admitted(admission.update(Room(4, 3), 0.0)) == ["b"]


def test_the_least_slack_comes_first() -> None:
    admission = Admission()
    for name, start_by_s in (("late", 9.0), ("soon", 1.0), ("later", 10.0)):
        admission.arrive(applicant(name, start_by_s=start_by_s), FULL, 0.0)
    assert admitted(admission.update(Room(9, 0), 0.0)) == ["soon", "late", "later"]


def test_a_tenant_with_many_requests_does_not_keep_another_waiting() -> None:
    admission = Admission()
    for number in range(10):
        admission.arrive(applicant(f"many-{number}", tenant="many"), FULL, 0.0)
    admission.arrive(applicant("one", tenant="one"), FULL, 0.0)
    assert admitted(admission.update(Room(4, 2), 0.0)) == ["many-0", "one"]


def test_tenants_take_turns_by_work_not_by_requests() -> None:
    admission = Admission()
    for name, tenant, work_tokens in (("a1", "a", 500), ("a2", "a", 500), ("b1", "b", 200), ("b2", "b", 200)):
        admission.arrive(Applicant(name, QosTier.REALTIME, tenant, work_tokens, start_by_s=0.0), FULL, 0.0)
    assert admitted(admission.update(Room(9, 0), 0.0)) == ["a1", "b1", "b2", "a2"]


def test_what_cannot_be_in_time_is_dropped_before_it_takes_a_turn() -> None:
    admission = Admission()
    admission.arrive(applicant("hopeless", give_up_s=5.0), FULL, 0.0)
    admission.arrive(applicant("fine"), FULL, 0.0)
    assert admission.next_give_up_s == 5.0
    hopeless, fine = admission.update(Room(4, 3), 5.0)
    assert isinstance(hopeless, Refuse)
    assert isinstance(hopeless.error, DeadlineExceededError)
    assert fine == Admit("fine")


def test_realtime_pushes_batch_out_of_a_full_queue() -> None:
    admission = Admission(AdmissionLimits(queue_length=2))
    for name in ("batch-1", "batch-2"):
        admission.arrive(applicant(name, QosTier.BATCH, start_by_s=float(name[-1])), FULL, 0.0)
    (refusal,) = admission.arrive(applicant("chat"), FULL, 0.0)
    assert isinstance(refusal, Refuse)
    assert refusal.request_id == "batch-2"
    assert isinstance(refusal.error, QueueFullError)
    assert refusal.error.retry_after_s is not None
    assert refusal.error.retry_after_s > 0
    assert refused(admission.arrive(applicant("batch-3", QosTier.BATCH, start_by_s=3.0), FULL, 0.0)) == ["batch-3"]


def test_batch_is_pushed_out_before_backup() -> None:
    admission = Admission(AdmissionLimits(queue_length=2))
    for tier in (QosTier.BATCH, QosTier.BACKUP):
        admission.arrive(applicant(tier.value, tier), FULL, 0.0)
    assert refused(admission.arrive(applicant("chat-1"), FULL, 0.0)) == [QosTier.BATCH.value]
    assert refused(admission.arrive(applicant("chat-2"), FULL, 0.0)) == [QosTier.BACKUP.value]


def test_the_tenant_with_the_most_that_wait_is_pushed_out() -> None:
    admission = Admission(AdmissionLimits(queue_length=3))
    for name, tenant in (("many-1", "many"), ("one", "one"), ("many-2", "many")):
        admission.arrive(applicant(name, QosTier.BATCH, tenant), FULL, 0.0)
    assert refused(admission.arrive(applicant("chat"), FULL, 0.0)) == ["many-2"]


def test_realtime_is_turned_away_where_it_would_be_late() -> None:
    admission = Admission(AdmissionLimits(shed_after_s=1.0))
    admission.ended(2.0)  # of 4 that run, one ends every half second
    assert [refused(admission.arrive(applicant(str(number)), FULL, 0.0)) for number in range(2)] == [[], []]
    (refusal,) = admission.arrive(applicant("2"), FULL, 0.0)
    assert isinstance(refusal, Refuse)
    assert isinstance(refusal.error, QueueFullError)
    assert refusal.error.retry_after_s == pytest.approx(0.5), "until the wait would be no longer than is accepted"


def test_backup_waits_for_an_idle_worker() -> None:
    admission = Admission()
    assert admission.arrive(applicant("poison", QosTier.BACKUP), Room(8, 2, idle_workers=0), 0.0) == []
    assert admitted(admission.update(Room(8, 1, idle_workers=1), 0.0)) == ["poison"]


def test_what_was_admitted_and_finds_no_worker_does_not_keep_backup_from_the_one_kept_for_it() -> None:
    admission = Admission()
    for name in ("a", "b"):  # planned they are not: the last worker has been closed to them meanwhile
        assert admitted(admission.arrive(applicant(name), Room(4, 0, 1), 0.0)) == [name]
    assert admission.arrive(applicant("backup", QosTier.BACKUP), Room(4, 1, 0), 0.0) == []
    assert admission.update(Room(4, 4, 1), 0.0) == [], "they are about to have it"
    assert admitted(admission.update(Room(4, 4, 1, kept_idle=1), 0.0)) == ["backup"]
    assert admission.arrive(applicant("another", QosTier.BACKUP), Room(4, 4, 1, kept_idle=1), 0.0) == []


def test_withdrawn_requests_leave_nothing() -> None:
    admission = Admission()
    admission.arrive(applicant("a"), FULL, 0.0)
    admission.withdraw("a")
    admission.withdraw("a")
    assert admission.waiting_count == 0
    assert admission.update(Room(4, 0), 0.0) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 100)), min_size=1, max_size=200))
def test_tenants_that_wait_all_the_time_are_served_alike(costs: list[tuple[int, int]]) -> None:
    share, served = FairShare(), defaultdict[str, int](int)
    waiting = ["a", "b", "c", "d"]
    for _, cost in costs:
        tenant = min(waiting, key=share.served_tokens)
        share.charge(tenant, cost, waiting)
        served[tenant] += cost
    totals = [served[tenant] for tenant in waiting]
    assert max(totals) - min(totals) <= 100


def test_who_comes_late_has_saved_nothing() -> None:
    share = FairShare()
    for _ in range(10):
        share.charge("early", 100, ["early"])
    assert share.served_tokens("late") >= 900


def test_a_bounded_memory_keeps_those_that_are_ahead() -> None:
    share = FairShare()
    share.charge("ahead", 1_000_000, ["waits"])
    for number in range(2 * MOST_TENANTS):
        share.charge(str(number), 10, ["waits"])
    assert share.served_tokens("ahead") == 1_000_000


def test_counters_are_bounded() -> None:
    share = FairShare()
    for number in range(3 * MOST_TENANTS):
        share.charge(str(number), 10, [str(number), "waits"])
    assert len(share._served_tokens) <= MOST_TENANTS


@dataclass
class _Run:
    tier: QosTier
    tenant: str
    start_by_s: float
    give_up_s: float
    arrival: int
    state: str = "waiting"


@dataclass
class _World:
    places: int = 4
    now_s: float = 0.0
    requests: dict[str, _Run] = field(default_factory=dict)

    def of(self, state: str, *tiers: QosTier) -> list[str]:
        return [name for name, one in self.requests.items() if one.state == state and (not tiers or one.tier in tiers)]


class AdmissionMachine(RuleBasedStateMachine):
    """A fleet that runs what is admitted, against the rules told beside it."""

    @initialize(places=st.integers(1, 6), queue_length=st.integers(1, 5), reserved=st.sampled_from([0.0, 0.25, 0.5]))
    def begin(self, places: int, queue_length: int, reserved: float) -> None:
        self.limits = AdmissionLimits(reserved, queue_length, shed_after_s=math.inf)
        self.admission = Admission(self.limits)
        self.world = _World(places)
        self.number = 0

    @property
    def room(self) -> Room:
        running = self.world.of("running")
        alone = self.world.of("running", QosTier.BACKUP)
        return Room(self.world.places, len(running) - len(alone), 0 if running else 1)

    def take(self, effects: list[AdmissionEffect]) -> None:
        room = self.room
        free = room.places - room.taken - len(self.world.of("admitted", QosTier.REALTIME, QosTier.BATCH))
        idle = room.idle_workers - len(self.world.of("admitted"))
        reserved = min(math.ceil(self.limits.reserved_share * room.places), room.places - 1)
        for effect in effects:
            one = self.world.requests[effect.request_id]
            assert one.state == "waiting"
            if isinstance(effect, Refuse):
                if isinstance(effect.error, DeadlineExceededError):
                    assert one.give_up_s <= self.world.now_s
                elif one.tier is QosTier.REALTIME:
                    assert not self.world.of("waiting", QosTier.BATCH, QosTier.BACKUP)
                one.state = "refused"
                continue
            assert one.give_up_s > self.world.now_s
            if one.tier is not QosTier.BACKUP:
                assert free > (reserved if one.tier is QosTier.BATCH else 0)
                free -= 1
            else:
                assert idle > 0
            idle -= 1
            rivals = [
                other
                for other in self.world.requests.values()
                if other.state == "waiting" and (other.tier, other.tenant) == (one.tier, one.tenant)
            ]
            assert min(rivals, key=lambda other: (other.start_by_s, other.arrival)) is one
            one.state = "admitted"

    @rule(
        tier=st.sampled_from(list(QosTier)),
        tenant=st.sampled_from("ab"),
        slack_s=st.integers(0, 3),
        patience_s=st.sampled_from([2.0, math.inf]),
    )
    def arrive(self, tier: QosTier, tenant: str, slack_s: int, patience_s: float) -> None:
        self.number += 1
        now_s, name = self.world.now_s, str(self.number)
        run = _Run(tier, tenant, now_s + slack_s, now_s + patience_s, self.number)
        self.world.requests[name] = run
        newcomer = Applicant(name, tier, tenant, 10, run.start_by_s, run.give_up_s)
        self.take(self.admission.arrive(newcomer, self.room, now_s))

    @precondition(lambda self: self.world.of("admitted"))
    @rule(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.world.of("admitted")))
        self.world.requests[name].state = "running"
        self.admission.planned(name)

    @precondition(lambda self: self.world.of("running"))
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.world.requests[data.draw(st.sampled_from(self.world.of("running")))].state = "ended"
        self.take(self.admission.update(self.room, self.world.now_s))

    @precondition(lambda self: self.world.of("waiting") or self.world.of("admitted"))
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.world.of("waiting") + self.world.of("admitted")))
        self.world.requests[name].state = "ended"
        self.admission.withdraw(name)
        self.take(self.admission.update(self.room, self.world.now_s))

    @rule(seconds=st.integers(1, 2))
    def wait(self, seconds: int) -> None:
        self.world.now_s += seconds
        self.take(self.admission.update(self.room, self.world.now_s))

    @invariant()
    def waits_only_who_must(self) -> None:
        waiting = self.world.of("waiting")
        assert self.admission.waiting_count == len(waiting) <= self.limits.queue_length
        free = self.room.places - self.room.taken - len(self.world.of("admitted", QosTier.REALTIME, QosTier.BATCH))
        if self.world.of("waiting", QosTier.REALTIME):
            assert free <= 0
        if not self.world.of("running") and not self.world.of("admitted"):
            assert not waiting


TestAdmission = AdmissionMachine.TestCase
TestAdmission.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_a_wait_is_guessed_from_how_long_places_are_held(seconds: float) -> None:
    admission = Admission()
    if seconds:
        admission.ended(seconds)
        assert admission.wait_s(3, FULL) == pytest.approx(4 * seconds / 4)
    else:
        assert admission.wait_s(3, FULL) > 0
