"""Members and loads as protobuf and back: what the fleet says of itself over NATS."""

from forebay.errors import InvalidFieldError
from forebay.fleet.member import Load, Member
from forebay.routing.cost import ChipRates, ModelSize
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
        model_size=None if member.model_size is None else _size_to_proto(member.model_size),
        rates=None if member.rates is None else _rates_to_proto(member.rates),
    )


def member_from_proto(message: events_pb2.FleetMember) -> Member:
    """The member of a message.

    Raises:
        InvalidFieldError: it has no id or address, or its role or layout is unknown, or its figures are none.
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
        model_size=_size_from_proto(message.model_size) if message.HasField("model_size") else None,
        rates=_rates_from_proto(message.rates) if message.HasField("rates") else None,
    )


def load_to_proto(worker_id: str, load: Load) -> events_pb2.WorkerLoad:
    """The load on the wire."""
    return events_pb2.WorkerLoad(
        worker_id=worker_id,
        running_sequences=load.running_sequences,
        queued_sequences=load.queued_sequences,
        queued_tokens=load.queued_tokens,
        context_tokens=load.context_tokens,
        is_isolated=load.is_isolated,
        queued_realtime_tokens=load.queued_realtime_tokens,
    )


def load_from_proto(message: events_pb2.WorkerLoad) -> Load:
    """The load of a message."""
    return Load(
        running_sequences=message.running_sequences,
        queued_sequences=message.queued_sequences,
        queued_tokens=message.queued_tokens,
        context_tokens=message.context_tokens,
        is_isolated=message.is_isolated,
        queued_realtime_tokens=message.queued_realtime_tokens,
    )


def _size_to_proto(size: ModelSize) -> events_pb2.ModelSize:
    return events_pb2.ModelSize(
        parameters=size.parameters,
        weight_bytes=size.weight_bytes,
        kv_token_bytes=size.kv_token_bytes,
        layers=size.layers,
        width=size.width,
    )


def _size_from_proto(message: events_pb2.ModelSize) -> ModelSize:
    return ModelSize(
        parameters=message.parameters,
        weight_bytes=message.weight_bytes,
        kv_token_bytes=message.kv_token_bytes,
        layers=message.layers,
        width=message.width,
    )


def _rates_to_proto(rates: ChipRates) -> events_pb2.ChipRates:
    return events_pb2.ChipRates(
        step_overhead_s=rates.step_overhead_s,
        flops_per_s=rates.flops_per_s,
        bytes_per_s=rates.bytes_per_s,
        watts=rates.watts,
        usd_per_hour=rates.usd_per_hour,
    )


def _rates_from_proto(message: events_pb2.ChipRates) -> ChipRates:
    return ChipRates(
        step_overhead_s=message.step_overhead_s,
        flops_per_s=message.flops_per_s,
        bytes_per_s=message.bytes_per_s,
        watts=message.watts,
        usd_per_hour=message.usd_per_hour,
    )
