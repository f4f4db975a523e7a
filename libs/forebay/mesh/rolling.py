"""Which services of a mesh are replaced one by one, and where the new one listens. Pure."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from forebay.errors import StartError
from forebay.mesh.spec import MOST_WORKERS


class Manner(StrEnum):
    """OVERLAP: the replacement serves before the old one drains. IN_PLACE: the old one ends first, others serve."""

    OVERLAP = "overlap"
    IN_PLACE = "in place"


@dataclass(frozen=True, slots=True)
class RollingPlan:
    """steps: names and how, in order. stays: what cannot roll, with the reason."""

    steps: tuple[tuple[str, Manner], ...]
    stays: tuple[tuple[str, str], ...]


_GONE: Final = "its process is gone, as after a drain; `forebay up` starts it again"
_WORKERS: Final = ("prefill", "decode")
_REPLICAS: Final = ("tokenizer", "router")
_KEEPS_STATE: Final = {
    "kvcache": "it owns its node's KV memory, which would be lost with it; `down` and `up` restart it",
    "nats": "every service is connected to it; `down` and `up` restart it",
}


def plan_rolling(
    services: Sequence[tuple[str, str]], wanted: Collection[str], gone: Collection[str] = ()
) -> RollingPlan:
    """services: name and role of each. wanted: names or roles; none: all that can. gone: names without a process.

    Raises StartError for a name that is unknown, and for one that was named and cannot roll.
    """
    unknown = [one for one in wanted if one not in {part for service in services for part in service}]
    if unknown:
        known = ", ".join(name for name, _ in services)
        raise StartError(f"the mesh has no service {unknown[0]!r}; it has {known}")
    counts = Counter(role for name, role in services if name not in gone)
    chosen = [(name, role) for name, role in services if not wanted or name in wanted or role in wanted]
    reasons = {name: _GONE if name in gone else _why_not(role, counts[role]) for name, role in chosen}
    stays = tuple((name, reason) for name, reason in reasons.items() if reason is not None)
    if wanted and stays:
        raise StartError(f"{stays[0][0]} cannot be restarted while the mesh serves: {stays[0][1]}")
    ranked = sorted(chosen, key=lambda one: (*_WORKERS, *_REPLICAS, *_KEEPS_STATE).index(one[1]))
    steps = tuple(
        (name, Manner.OVERLAP if role in _WORKERS else Manner.IN_PLACE)
        for name, role in ranked
        if reasons[name] is None
    )
    return RollingPlan(steps, stays)


def free_address(own: str, spare: Sequence[str], taken: Collection[str]) -> str:
    """Where a replacement listens: at the service's own address of the mesh's plan, else at a spare one.

    Raises StartError when all are taken.
    """
    for address in (own, *spare):
        if address not in taken:
            return address
    raise StartError("all ports for replacements are taken")


def free_name(role: str, taken: Collection[str]) -> str:
    """Of a further worker of a role. Raises StartError when there are as many as a mesh has room for."""
    for index in range(MOST_WORKERS):
        if (name := f"{role}-{index}") not in taken:
            return name
    raise StartError(f"a mesh has at most {MOST_WORKERS} workers of a role")


def check_switch(services: Sequence[tuple[str, str]], name: str, role: str) -> None:
    """Whether this service can have this role instead of its own. services: name and role of each.

    Raises StartError for what is no worker, has the role already, or is the last of its own.
    """
    roles = dict(services)
    if name not in roles:
        raise StartError(f"the mesh has no service {name!r}; it has {', '.join(roles)}")
    if roles[name] not in _WORKERS or role not in _WORKERS:
        raise StartError(f"{name} cannot become {role}: only prefill and decode workers change roles")
    if roles[name] == role:
        raise StartError(f"{name} is a {role} worker already")
    if list(roles.values()).count(roles[name]) == 1:
        raise StartError(f"{name} is the last {roles[name]} worker; requests would have none")


def as_role(command: Sequence[str], role: str) -> tuple[str, ...]:
    """The command line of a worker, whose settings both roles have, as that of a worker of this role."""
    return tuple(f"forebay.{role}" if part in {f"forebay.{one}" for one in _WORKERS} else part for part in command)


def _why_not(role: str, count: int) -> str | None:
    if role in _KEEPS_STATE:
        return _KEEPS_STATE[role]
    if role in _REPLICAS and count == 1:
        return f"it is the only {role}, and callers know it by its address; start the mesh with --{role}s 2"
    return None
