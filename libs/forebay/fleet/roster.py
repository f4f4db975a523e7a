"""The members as one reader knows them, through resyncs. Pure: time is an argument.

Invariant: a member leaves only when its record was deleted or ran out, when another of its role serves at its address
since, or when it did not come back within the grace after a resync. An emptied bucket (NATS restarted) therefore does
not empty the roster, and a process that was killed and started again is not two members until the old record runs out.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from forebay.fleet.member import Member


class Roster:
    """Members by worker id; `grace_s` is how long a member may stay unconfirmed after a resync."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._members: dict[str, Member] = {}
        self._unconfirmed: dict[str, float] = {}  # worker id → when it is given up, seconds

    @property
    def members(self) -> Mapping[str, Member]:
        """All members now, as a live read-only view."""
        return MappingProxyType(self._members)

    @property
    def next_expiry_s(self) -> float | None:
        """When `expire` has something to do; None: never."""
        return min(self._unconfirmed.values(), default=None)

    def put(self, member: Member) -> bool:
        """A record was written. Returns whether it says anything new."""
        self._unconfirmed.pop(member.worker_id, None)
        if self._members.get(member.worker_id) == member:
            return False
        rivals = [other for other in self._members.values() if _serve_at_one_place(other, member)]
        if any(other.incarnation > member.incarnation for other in rivals):
            return False
        for other in rivals:
            self.delete(other.worker_id)
        self._members[member.worker_id] = member
        return True

    def delete(self, worker_id: str) -> bool:
        """A record was deleted or ran out. Returns whether there was one."""
        self._unconfirmed.pop(worker_id, None)
        return self._members.pop(worker_id, None) is not None

    def resync(self, present: Iterable[Member], now_s: float) -> bool:
        """The bucket was read anew. Members it lacks get the grace. Returns whether anything is new."""
        missing = set(self._members)
        is_changed = False
        for member in present:
            missing.discard(member.worker_id)
            is_changed |= self.put(member)
        for worker_id in missing:
            self._unconfirmed.setdefault(worker_id, now_s + self._grace_s)
        return is_changed

    def expire(self, now_s: float) -> bool:
        """Gives up members whose grace is over. Returns whether there were any."""
        gone = [worker_id for worker_id, until_s in self._unconfirmed.items() if until_s <= now_s]
        for worker_id in gone:
            self.delete(worker_id)
        return bool(gone)


def _serve_at_one_place(one: Member, other: Member) -> bool:
    """Whether these cannot both live: one process listens at an address. Of unknown age nothing is said."""
    return (
        one.worker_id != other.worker_id
        and (one.role, one.address) == (other.role, other.address)
        and one.incarnation > 0
        and other.incarnation > 0
    )
