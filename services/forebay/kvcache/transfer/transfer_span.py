"""The span of one transfer: how many bytes, how fast, from which layout into which. Measures nothing itself."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind

from forebay.errors import ForebayError
from forebay.kv.conversion import ConversionPlan
from forebay.kv.layout import KvLayout
from forebay.kv.tier import Tier
from forebay.telemetry import span, spans
from forebay.wire.bring_request import BringWish


@contextmanager
def transfer_span(wish: BringWish, plan: ConversionPlan, parent: Context | None) -> Iterator[Span]:
    """A current span around a transfer."""
    attributes = {
        spans.REQUEST_ID: wish.sequence_id or "",
        spans.KV_SOURCE_NODE_ID: wish.source.node_id,
        spans.KV_FROM_TIER: Tier.REMOTE.value,
        spans.KV_TO_TIER: Tier.DEVICE.value,
        spans.KV_FROM_LAYOUT: _text(wish.layout),
        spans.KV_TO_LAYOUT: _text(plan.target),
    }
    with span(spans.KV_TRANSFER, attributes, context=parent, kind=SpanKind.SERVER) as current:
        yield current


def describe_transfer(current: Span, block_count: int, byte_count: int, seconds: float) -> None:
    """What the transfer came to. block_count: blocks that were not here."""
    current.set_attributes(
        {
            spans.KV_BLOCKS: block_count,
            spans.TRANSFER_BYTES: byte_count,
            spans.TRANSFER_S: seconds,
            spans.TRANSFER_RATE: byte_count / seconds if seconds > 0 else 0.0,
        }
    )


def describe_failure(current: Span, error: ForebayError) -> None:
    """Why not all of it came; the request goes on without."""
    current.set_attribute(spans.ERROR_TYPE, error.reason)


def _text(layout: KvLayout) -> str:
    ranks = "" if layout.ranks == 1 else f", {layout.ranks} ranks"
    return f"{layout.dtype.value} x {layout.block_tokens} tokens, {layout.order.value}{ranks}"
