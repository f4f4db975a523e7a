"""Members, loads and layouts as protobuf and back: the fleet's one edge to the wire."""

from typing import Final

from forebay.errors import InvalidFieldError
from forebay.fleet.member import Load, Member, Role
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout
from forebay.v1 import common_pb2, events_pb2

_ROLES: Final = {
    Role.ROUTER: common_pb2.SERVICE_ROLE_ROUTER,
    Role.TOKENIZER: common_pb2.SERVICE_ROLE_TOKENIZER,
    Role.PREFILL: common_pb2.SERVICE_ROLE_PREFILL,
    Role.DECODE: common_pb2.SERVICE_ROLE_DECODE,
    Role.KVCACHE: common_pb2.SERVICE_ROLE_KVCACHE,
    Role.GATEWAY: common_pb2.SERVICE_ROLE_GATEWAY,
}
_DTYPES: Final = {
    KvDtype.FLOAT32: common_pb2.DATA_TYPE_FLOAT32,
    KvDtype.BFLOAT16: common_pb2.DATA_TYPE_BFLOAT16,
    KvDtype.FLOAT16: common_pb2.DATA_TYPE_FLOAT16,
    KvDtype.FLOAT8_E4M3: common_pb2.DATA_TYPE_FLOAT8_E4M3,
    KvDtype.INT8: common_pb2.DATA_TYPE_INT8,
}
_ORDERS: Final = {
    AxisOrder.LAYER_KV_HEAD_TOKEN: common_pb2.AXIS_ORDER_LAYER_KV_HEAD_TOKEN,
    AxisOrder.LAYER_KV_TOKEN_HEAD: common_pb2.AXIS_ORDER_LAYER_KV_TOKEN_HEAD,
    AxisOrder.LAYER_KV_HEAD_PAIRED: common_pb2.AXIS_ORDER_LAYER_KV_HEAD_PAIRED,
}
_ROLE_OF: Final = {number: role for role, number in _ROLES.items()}
_DTYPE_OF: Final = {number: dtype for dtype, number in _DTYPES.items()}
_ORDER_OF: Final = {number: order for order, number in _ORDERS.items()}


def layout_to_proto(layout: KvLayout) -> common_pb2.KvLayout:
    """The layout on the wire."""
    return common_pb2.KvLayout(
        dtype=_DTYPES[layout.dtype],
        block_tokens=layout.block_tokens,
        layers=layout.layers,
        kv_heads=layout.kv_heads,
        head_dim=layout.head_dim,
        order=_ORDERS[layout.order],
        first_kv_head=layout.first_kv_head,
        total_kv_heads=layout.kv_heads if layout.total_kv_heads is None else layout.total_kv_heads,
    )


def layout_from_proto(message: common_pb2.KvLayout) -> KvLayout:
    """The layout of a message; two equal layouts compare equal however they were written.

    Raises:
        InvalidFieldError: an enum is unknown or a size is 0.
    """
    if message.dtype not in _DTYPE_OF:
        raise InvalidFieldError("KV layout has no known dtype", field="layout.dtype")
    if message.order not in _ORDER_OF:
        raise InvalidFieldError("KV layout has no known axis order", field="layout.order")
    for name in ("block_tokens", "layers", "kv_heads", "head_dim"):
        if getattr(message, name) == 0:
            raise InvalidFieldError(f"KV layout has no {name}", field=f"layout.{name}")
    is_sharded = message.total_kv_heads not in (0, message.kv_heads)
    return KvLayout(
        dtype=_DTYPE_OF[message.dtype],
        layers=message.layers,
        kv_heads=message.kv_heads,
        head_dim=message.head_dim,
        block_tokens=message.block_tokens,
        order=_ORDER_OF[message.order],
        first_kv_head=message.first_kv_head,
        total_kv_heads=message.total_kv_heads if is_sharded else None,
    )


def member_to_proto(member: Member) -> events_pb2.FleetMember:
    """The member on the wire."""
    return events_pb2.FleetMember(
        worker_id=member.worker_id,
        role=_ROLES[member.role],
        address=member.address,
        node_id=member.node_id,
        model=member.model,
        model_digest=member.model_digest,
        chip_class=member.chip_class,
        layout=None if member.layout is None else layout_to_proto(member.layout),
        kvcache_address=member.kvcache_address,
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
    if message.role not in _ROLE_OF:
        raise InvalidFieldError("fleet member has no known role", field="role")
    return Member(
        worker_id=message.worker_id,
        role=_ROLE_OF[message.role],
        address=message.address,
        node_id=message.node_id,
        model=message.model,
        model_digest=message.model_digest,
        chip_class=message.chip_class,
        layout=layout_from_proto(message.layout) if message.HasField("layout") else None,
        kvcache_address=message.kvcache_address,
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
        free_blocks=load.free_blocks,
    )


def load_from_proto(message: events_pb2.WorkerLoad) -> Load:
    """The load of a message."""
    return Load(
        running_sequences=message.running_sequences,
        queued_sequences=message.queued_sequences,
        queued_tokens=message.queued_tokens,
        context_tokens=message.context_tokens,
        free_blocks=message.free_blocks,
    )
