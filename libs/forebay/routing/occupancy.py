"""How full the fleet's decode workers are, kept up as loads change, and which of them run a request alone. Pure."""

from collections.abc import Iterable
from typing import Final

from forebay.routing.admission import Room
from forebay.routing.fleet import FleetSnapshot, Worker

WANTED_IDLE_S: Final = 1.0
"""For so long after it was last wanted, a worker is kept free of new work so that it becomes idle."""

LAST_WANTED_S: Final = 2.0
"""After so long that goes for the last worker too: else it would never be idle while others come."""


class Occupancy:
    """`follow` the fleet before asking. Times are those of one clock of the caller's."""

    def __init__(self) -> None:
        self._fleet = FleetSnapshot()
        self._places: dict[str, int] = {}  # of decode workers that take new work
        self._sequences: dict[str, int] = {}  # by worker, where there are any
        self._isolated: set[str] = set()  # as workers say
        self._alone: dict[str, str] = {}  # by request id, the worker that it has to itself
        self._place_count = self._taken_count = self._idle_count = 0
        self._emptying: str | None = None
        self._wanted_since_s = self._wanted_until_s = 0.0
        self._open: tuple[FleetSnapshot, frozenset[str], FleetSnapshot] | None = None

    def follow(self, fleet: FleetSnapshot) -> None:
        """The fleet is this now."""
        if fleet is self._fleet:
            return
        self._fleet = fleet
        self._places = {one.worker_id: one.max_sequences or 1 for one in fleet.decode if not one.is_draining}
        self._count_all()

    def note(self, worker_id: str, sequences: int, *, is_isolated: bool) -> None:
        """A worker runs so many sequences."""
        self._count(worker_id, -1)
        if sequences:
            self._sequences[worker_id] = sequences
        else:
            self._sequences.pop(worker_id, None)
        if is_isolated:
            self._isolated.add(worker_id)
        else:
            self._isolated.discard(worker_id)
        self._count(worker_id, 1)

    def isolate(self, request_id: str, worker_id: str) -> None:
        """The request has this worker to itself, until `open_up`."""
        self._alone[request_id] = worker_id
        self._count_all()

    def open_up(self, request_id: str) -> bool:
        """The request has ended there; whether it had a worker to itself. Idempotent."""
        worker_id = self._alone.pop(request_id, None)
        if worker_id is None:
            return False
        self._isolated.discard(worker_id)  # as it said while the request ran
        self._count_all()
        return True

    def keep(self, worker_ids: Iterable[str]) -> None:
        """Forgets every worker that is not one of these."""
        known = set(worker_ids)
        self._sequences = {one: count for one, count in self._sequences.items() if one in known}
        self._isolated &= known
        self._count_all()

    def room(self, now_s: float) -> Room:
        """What the fleet has room for."""
        kept_free = self._kept_free(now_s)
        kept = sum(max(0, self._places[one] - self._sequences.get(one, 0)) for one in kept_free)
        kept_idle = sum(one not in self._sequences for one in kept_free)
        return Room(self._place_count, self._taken_count + kept, self._idle_count, kept_idle)

    def want_idle(self, now_s: float) -> None:
        """A request waits for a worker of its own: one is kept free of new work; the last one only after a while."""
        if now_s >= self._wanted_until_s:
            self._wanted_since_s, self._emptying = now_s, None
        self._wanted_until_s = now_s + WANTED_IDLE_S

    def open_fleet(self, now_s: float) -> FleetSnapshot:
        """The fleet without decode workers that take no company, now or soon."""
        closed = frozenset((*self._isolated, *self._alone.values(), *self._kept_free(now_s)))
        if not closed:
            return self._fleet
        if self._open is None or self._open[:2] != (self._fleet, closed):
            decode = tuple(one for one in self._fleet.decode if one.worker_id not in closed)
            self._open = self._fleet, closed, FleetSnapshot(self._fleet.prefill, decode)
        return self._open[2]

    def idle_fleet(self) -> FleetSnapshot:
        """The decode workers that run nothing, and no prefill workers: where one request can run alone."""
        return FleetSnapshot((), tuple(one for one in self._fleet.decode if self._is_idle(one)))

    def _kept_free(self, now_s: float) -> tuple[str, ...]:
        if now_s >= self._wanted_until_s:
            return ()
        others = [one for one in self._places if not self._is_closed(one)]
        is_last = len(others) == 1
        if not others or (is_last and now_s < self._wanted_since_s + LAST_WANTED_S):
            return ()
        if self._emptying not in others:
            self._emptying = min(others, key=lambda one: (self._sequences.get(one, 0), one))
        return (self._emptying,)

    def _is_idle(self, worker: Worker) -> bool:
        worker_id = worker.worker_id
        return worker_id in self._places and worker_id not in self._sequences and not self._is_closed(worker_id)

    def _is_closed(self, worker_id: str) -> bool:
        return worker_id in self._isolated or worker_id in self._alone.values()

    def _count_all(self) -> None:
        self._place_count, self._taken_count, self._idle_count = sum(self._places.values()), 0, 0
        for worker_id in self._places:
            self._count(worker_id, 1)

    def _count(self, worker_id: str, sign: int) -> None:
        places = self._places.get(worker_id)
        if places is None:
            return
        sequences = self._sequences.get(worker_id, 0)
        is_closed = self._is_closed(worker_id)
        self._taken_count += sign * (max(places, sequences) if is_closed else sequences)
        self._idle_count += sign * (sequences == 0 and not is_closed)
