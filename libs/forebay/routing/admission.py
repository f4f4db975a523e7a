"""Who may begin now, who waits, and who is turned away: before the fleet is overloaded, BATCH first. Pure.

Decides and returns effects; the time and what the fleet has room for are arguments. Knows no workers: where a request
goes is the plan's business, which is made when it is admitted.
"""

import math
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from forebay.bounded_average import BoundedAverage
from forebay.errors import RETRY_AFTER_S, DeadlineExceededError, ForebayError, QueueFullError
from forebay.routing.fair_share import FairShare
from forebay.routing.option import QosTier

DEFAULT_RESERVED_SHARE: Final = 0.25
DEFAULT_QUEUE_LENGTH: Final = 512
DEFAULT_SHED_AFTER_S: Final = 5.0
LEAST_RETRY_S: Final = 0.1
_TIERS: Final = (QosTier.REALTIME, QosTier.BATCH, QosTier.BACKUP)
_SHED_FIRST: Final = (QosTier.BATCH, QosTier.BACKUP)


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """How much may wait.

    reserved_share: of the fleet's places, that BATCH leaves free for REALTIME to come. queue_length: requests that wait
    at most, of all tiers. shed_after_s: a REALTIME request that would wait for longer is refused at once.
    """

    reserved_share: float = DEFAULT_RESERVED_SHARE
    queue_length: int = DEFAULT_QUEUE_LENGTH
    shed_after_s: float = DEFAULT_SHED_AFTER_S


@dataclass(frozen=True, slots=True)
class Room:
    """What the fleet has room for, as far as it is known.

    places: sequences that its decode workers can generate for at once, 0: none; taken: of these, all those
    of a worker that runs a request alone; idle_workers: that run nothing, and might run one request alone;
    kept_idle: of these, those that are kept for such a request.
    """

    places: int
    taken: int
    idle_workers: int = 0
    kept_idle: int = 0


@dataclass(frozen=True, slots=True)
class Applicant:
    """A request that wants to begin.

    work_tokens: what it is to its tenant's account. start_by_s: the latest moment to begin and be in time; the earlier,
    the sooner its turn. give_up_s: when beginning has become useless; infinite: never.
    """

    request_id: str
    qos_tier: QosTier
    tenant: str
    work_tokens: int
    start_by_s: float
    give_up_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Admit:
    """It may be planned and begin."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """It ends with this error."""

    request_id: str
    error: ForebayError


AdmissionEffect = Admit | Refuse


class _Place(NamedTuple):
    """In line within a tenant: the least slack first."""

    start_by_s: float
    arrival: int
    applicant: Applicant


class Admission:
    """Requests of one router between their arrival and their plan.

    REALTIME may take every place, and pushes BATCH out of a full queue. BATCH leaves a reserve and comes when no
    REALTIME waits. BACKUP has a worker to itself, so that one begins where one is idle. Within a tier the
    tenant that was served least comes first, and of a tenant's requests the one with the least slack. Where no
    worker is, nobody waits: the plan says what is missing.

    Invariants: each request is told one effect at most; none waits that may begin; at most queue_length wait; none of
    REALTIME is refused for want of room in the queue while one of another tier waits.
    """

    def __init__(self, limits: AdmissionLimits | None = None) -> None:
        self._limits = limits or AdmissionLimits()
        self._arrivals = 0
        self._waiting: dict[QosTier, dict[str, list[_Place]]] = {tier: {} for tier in _TIERS}  # by tenant
        self._applicants: dict[str, _Place] = {}
        self._shares = {tier: FairShare() for tier in _TIERS}
        self._unplanned: dict[str, QosTier] = {}  # admitted, and not seen among what is taken yet
        self._held_s = BoundedAverage()

    @property
    def waiting_count(self) -> int:
        """Requests that wait."""
        return len(self._applicants)

    def waiting_of(self, qos_tier: QosTier) -> int:
        """Of one tier."""
        return sum(map(len, self._waiting[qos_tier].values()))

    @property
    def next_give_up_s(self) -> float:
        """When something is to be dropped if nothing happens before; infinite: never."""
        return min((place.applicant.give_up_s for place in self._applicants.values()), default=math.inf)

    def arrive(self, applicant: Applicant, room: Room, now_s: float) -> list[AdmissionEffect]:
        """It comes; effects are its own and others'."""
        effects: list[AdmissionEffect] = list(self._drop(now_s))
        self._join(applicant)
        effects += self._admit(room)
        if applicant.request_id in self._applicants:
            effects += self._shed(applicant, room)
        return effects

    def update(self, room: Room, now_s: float) -> list[AdmissionEffect]:
        """Time has passed, or the room has changed."""
        return [*self._drop(now_s), *self._admit(room)]

    def planned(self, request_id: str) -> None:
        """What it takes is among what is taken from now on. Idempotent."""
        self._unplanned.pop(request_id, None)

    def withdraw(self, request_id: str) -> None:
        """It has ended, whether it waited or had been admitted. Idempotent."""
        self._unplanned.pop(request_id, None)
        if request_id in self._applicants:
            self._leave_line(request_id)

    def ended(self, held_s: float) -> None:
        """A request that had begun has ended, so many seconds later."""
        self._held_s.take(max(held_s, 1e-3))

    def wait_s(self, ahead_count: int, room: Room) -> float:
        """Seconds until so many others, and then one more, have got a place, as far as is known."""
        if self._held_s.value is None:
            return RETRY_AFTER_S
        return (ahead_count + 1) * self._held_s.value / max(1, room.taken)

    def _join(self, applicant: Applicant) -> None:
        self._arrivals += 1
        place = _Place(applicant.start_by_s, self._arrivals, applicant)
        self._applicants[applicant.request_id] = place
        insort(self._waiting[applicant.qos_tier].setdefault(applicant.tenant, []), place, key=lambda one: one[:2])

    def _leave_line(self, request_id: str) -> Applicant:
        place = self._applicants.pop(request_id)
        applicant = place.applicant
        tenants = self._waiting[applicant.qos_tier]
        tenants[applicant.tenant].remove(place)
        if not tenants[applicant.tenant]:
            del tenants[applicant.tenant]
        return applicant

    def _drop(self, now_s: float) -> Iterator[Refuse]:
        """Those that cannot be in time any more take nobody's turn."""
        late = [place.applicant for place in self._applicants.values() if place.applicant.give_up_s <= now_s]
        for applicant in late:
            self._leave_line(applicant.request_id)
            yield Refuse(
                applicant.request_id,
                DeadlineExceededError("it waited for room until its deadline could not be met any more"),
            )

    def _admit(self, room: Room) -> Iterator[Admit]:
        free_count = room.places - room.taken - sum(tier is not QosTier.BACKUP for tier in self._unplanned.values())
        # One that is kept for BACKUP is not taken by others, though they wait for a worker too.
        unplanned_backup_count = sum(tier is QosTier.BACKUP for tier in self._unplanned.values())
        idle_count = max(room.idle_workers - len(self._unplanned), room.kept_idle - unplanned_backup_count)
        reserved_count = min(math.ceil(self._limits.reserved_share * room.places), max(0, room.places - 1))
        while True:
            if self._waiting[QosTier.REALTIME] and (free_count > 0 or room.places == 0):
                tier = QosTier.REALTIME
            elif self._waiting[QosTier.BACKUP] and (idle_count > 0 or room.places == 0):
                tier = QosTier.BACKUP
            elif self._waiting[QosTier.BATCH] and (free_count > reserved_count or room.places == 0):
                tier = QosTier.BATCH
            else:
                return
            free_count -= tier is not QosTier.BACKUP
            idle_count -= 1
            yield self._admit_next(tier)

    def _admit_next(self, tier: QosTier) -> Admit:
        tenants, share = self._waiting[tier], self._shares[tier]
        tenant = min(tenants, key=lambda one: (share.served_tokens(one), tenants[one][0][:2]))
        applicant = tenants[tenant][0].applicant
        share.charge(tenant, applicant.work_tokens, list(tenants))
        self._leave_line(applicant.request_id)
        self._unplanned[applicant.request_id] = tier
        return Admit(applicant.request_id)

    def _shed(self, applicant: Applicant, room: Room) -> Iterator[Refuse]:
        """The newcomer has to wait: is there room for it in the queue, and is it worth its while?"""
        is_realtime = applicant.qos_tier is QosTier.REALTIME
        if is_realtime:
            ahead_count = self.waiting_of(QosTier.REALTIME) - 1
            wait_s = self.wait_s(ahead_count, room)
            if wait_s > self._limits.shed_after_s:
                message = f"{ahead_count} requests wait already, for about {wait_s:.1f} s"
                yield self._refuse(applicant.request_id, message, wait_s - self._limits.shed_after_s)
                return
        if self.waiting_count <= self._limits.queue_length:
            return
        message = f"{self.waiting_count - 1} requests wait already"
        yield self._refuse(self._least_wanted(applicant), message, self.wait_s(self.waiting_count, room))

    def _least_wanted(self, newcomer: Applicant) -> str:
        """Of the tier that is shed first, of the tenant with the most that wait, the last."""
        tier = next((one for one in _SHED_FIRST if self._waiting[one]), newcomer.qos_tier)
        tenants = self._waiting[tier]
        return max(tenants.values(), key=len)[-1].applicant.request_id

    def _refuse(self, request_id: str, message: str, retry_after_s: float) -> Refuse:
        applicant = self._leave_line(request_id)
        tier = applicant.qos_tier.value
        error = QueueFullError(
            f"the fleet is full and {message}; {tier} is turned away", retry_after_s=max(LEAST_RETRY_S, retry_after_s)
        )
        return Refuse(request_id, error)
