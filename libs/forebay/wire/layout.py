"""KV layouts on the wire."""

from typing import Final

from forebay.errors import InvalidFieldError
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout
from forebay.v1 import common_pb2

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
        ranks=layout.ranks,
    )


def layout_from_proto(message: common_pb2.KvLayout) -> KvLayout:
    """The layout of a message; two equal layouts compare equal however they were written.

    Raises:
        InvalidFieldError: an enum is unknown, a size is 0, or ranks are more than heads.
    """
    if message.dtype not in _DTYPE_OF:
        raise InvalidFieldError("KV layout has no known dtype", field="layout.dtype")
    if message.order not in _ORDER_OF:
        raise InvalidFieldError("KV layout has no known axis order", field="layout.order")
    for name in ("block_tokens", "layers", "kv_heads", "head_dim"):
        if getattr(message, name) == 0:
            raise InvalidFieldError(f"KV layout has no {name}", field=f"layout.{name}")
    if message.ranks > message.kv_heads:
        raise InvalidFieldError("KV layout has more ranks than kv_heads", field="layout.ranks")
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
        ranks=max(1, message.ranks),
    )
