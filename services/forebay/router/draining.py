"""Draining a worker by command: who may be, and telling it."""

from collections.abc import Callable, Mapping
from typing import Final

from forebay.errors import DeadlineExceededError, DrainingError, RemoteError, UnknownWorkerError, WorkerLostError
from forebay.fleet.member import Member
from forebay.router.fleet_links import FleetLinks
from forebay.routing.draining import DrainCandidate, check_drain
from forebay.rpc.addressee import addressed_to
from forebay.rpc.status import translated
from forebay.v1 import worker_pb2

TOLD_S: Final = 5.0
"""How long a worker may take to hear that it is to drain."""


class Draining:
    """members: the fleet as it is now. Remembers whom it told, until the fleet says so."""

    def __init__(self, members: Callable[[], Mapping[str, Member]], links: FleetLinks) -> None:
        self._members = members
        self._links = links
        self._told: set[str] = set()

    async def drain(self, worker_id: str, *, is_forced: bool) -> int:
        """Tells a worker to drain; returns how many sequences it has. Idempotent while it is in the fleet.

        Raises UnknownWorkerError, LastWorkerError, NotDrainableError, WorkerLostError.
        """
        members = self._members()
        self._told &= members.keys()
        candidates = {member_id: self._candidate(member) for member_id, member in members.items()}
        if worker_id not in candidates:
            raise UnknownWorkerError(f"no member of the fleet is {worker_id!r}", field="worker_id")
        check_drain(candidates[worker_id], candidates.values(), is_forced=is_forced)
        stub = self._links.control(worker_id)
        was_leaving = candidates[worker_id].is_leaving
        self._told.add(worker_id)  # before the answer: of two calls at once, not both count on the other's worker
        try:
            with translated():
                response = await stub.Drain(worker_pb2.DrainRequest(), timeout=TOLD_S, metadata=addressed_to(worker_id))
        except (RemoteError, DrainingError, DeadlineExceededError) as error:
            if was_leaving:
                return 0  # it has just ended
            self._told.discard(worker_id)
            raise WorkerLostError(f"worker {worker_id} does not answer: {error.message}", worker_id=worker_id) from None
        return response.running_sequences

    def _candidate(self, member: Member) -> DrainCandidate:
        is_leaving = member.is_draining or member.worker_id in self._told
        return DrainCandidate(member.worker_id, member.role, member.model_digest, is_leaving)
