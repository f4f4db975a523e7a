"""Whether a member of the fleet may be drained. Pure: knows members as they are told, and asks nobody."""

from collections.abc import Iterable
from dataclasses import dataclass

from forebay.errors import LastWorkerError, NotDrainableError
from forebay.role import Role

_WORKERS = frozenset({Role.PREFILL, Role.DECODE})


@dataclass(frozen=True, slots=True)
class DrainCandidate:
    """A member as far as draining goes. is_leaving: it drains, or was told to."""

    worker_id: str
    role: Role
    model_digest: str
    is_leaving: bool


def check_drain(candidate: DrainCandidate, members: Iterable[DrainCandidate], *, is_forced: bool) -> None:
    """Returns if it may be drained; one that is leaving already may.

    Raises NotDrainableError for what is no worker; LastWorkerError, unless forced, for the last of its role and model.
    """
    if candidate.role not in _WORKERS:
        raise NotDrainableError(
            f"a {candidate.role.value} service is not drained by a router: only prefill and decode workers are; stop"
            " its process with SIGTERM, and it lets running work finish",
            worker_id=candidate.worker_id,
        )
    if candidate.is_leaving or is_forced or any(_can_replace(member, candidate) for member in members):
        return
    raise LastWorkerError(
        f"{candidate.worker_id} is the last {candidate.role.value} worker of its model that takes work; start another"
        " first, or force it",
        worker_id=candidate.worker_id,
    )


def _can_replace(member: DrainCandidate, candidate: DrainCandidate) -> bool:
    return (
        member.worker_id != candidate.worker_id
        and not member.is_leaving
        and (member.role, member.model_digest) == (candidate.role, candidate.model_digest)
    )
