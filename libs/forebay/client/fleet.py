"""The fleet as a router sees it, as plain frozen values."""

from dataclasses import dataclass

from forebay.v1 import common_pb2, events_pb2, router_pb2


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """How busy a worker is."""

    running_sequences: int
    queued_sequences: int
    queued_tokens: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Member:
    """One service. `role` is "router", "tokenizer", "prefill", "decode", "kvcache" or "gateway"."""

    worker_id: str
    role: str
    address: str
    node_id: str
    model: str
    model_digest: str
    chip_class: str
    is_draining: bool
    load: WorkerLoad | None


@dataclass(frozen=True, slots=True)
class Fleet:
    """All members, sorted by role and id. Not current: the router lost NATS, this is what it last knew."""

    members: tuple[Member, ...]
    is_current: bool


def read_fleet(response: router_pb2.GetFleetResponse) -> Fleet:
    """The values of a GetFleetResponse."""
    return Fleet(tuple(_member(entry) for entry in response.entries), response.is_current)


def _member(entry: router_pb2.FleetEntry) -> Member:
    member = entry.member
    return Member(
        worker_id=member.worker_id,
        role=common_pb2.ServiceRole.Name(member.role).removeprefix("SERVICE_ROLE_").lower(),
        address=member.address,
        node_id=member.node_id,
        model=member.model,
        model_digest=member.model_digest,
        chip_class=member.chip_class,
        is_draining=member.is_draining,
        load=_load(entry.load) if entry.HasField("load") else None,
    )


def _load(load: events_pb2.WorkerLoad) -> WorkerLoad:
    return WorkerLoad(
        running_sequences=load.running_sequences,
        queued_sequences=load.queued_sequences,
        queued_tokens=load.queued_tokens,
        context_tokens=load.context_tokens,
    )
