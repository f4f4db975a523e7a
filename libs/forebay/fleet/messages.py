"""Members and loads as protobuf and back: what the fleet says of itself over NATS."""

from forebay.errors import InvalidFieldError
from forebay.fleet.member import Load, Member
from forebay.v1 import events_pb2
from forebay.wire.layout import layout_from_proto, layout_to_proto
from forebay.wire.role import role_from_proto, role_to_proto


def member_to_proto(member: Member) -> events_pb2.FleetMember:
    """The member on the wire."""
    return events_pb2.FleetMember(
        worker_id=member.worker_id,
        role=role_to_proto(member.role),
        address=member.address,
        node_id=member.node_id,
        model=member.model,
        model_digest=member.model_digest,
        chip_class=member.chip_class,
        layout=None if member.layout is None else layout_to_proto(member.layout),
        is_draining=member.is_draining,
        max_sequences=member.max_sequences,
        version=member.version,
        incarnation=member.incarnation,
    )


def member_from_proto(message: events_pb2.FleetMember) -> Member:
    """The member of a message.

    Raises:
        InvalidFieldError: it has no id or address, or its role or layout is unknown.
    """
    if not message.worker_id or not message.address:
        raise InvalidFieldError("fleet member has no id or address", field="worker_id")
    return Member(
        worker_id=message.worker_id,
        role=role_from_proto(message.role),
        address=message.address,
        node_id=message.node_id,
        model=message.model,
        model_digest=message.model_digest,
        chip_class=message.chip_class,
        layout=layout_from_proto(message.layout) if message.HasField("layout") else None,
        is_draining=message.is_draining,
        max_sequences=message.max_sequences,
        version=message.version,
        incarnation=message.incarnation,
    )


def load_to_proto(worker_id: str, load: Load) -> events_pb2.WorkerLoad:
    """The load on the wire."""
    return events_pb2.WorkerLoad(
        worker_id=worker_id,
        running_sequences=load.running_sequences,
        queued_sequences=load.queued_sequences,
        queued_tokens=load.queued_tokens,
        context_tokens=load.context_tokens,
    )


def load_from_proto(message: events_pb2.WorkerLoad) -> Load:
    """The load of a message."""
    return Load(
        running_sequences=message.running_sequences,
        queued_sequences=message.queued_sequences,
        queued_tokens=message.queued_tokens,
        context_tokens=message.context_tokens,
    )
