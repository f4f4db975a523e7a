"""Trace context as W3C headers, for gRPC metadata, NATS headers and protobuf fields alike.

Knows only `traceparent` and `tracestate`; baggage is not carried, since it could hold what users typed.
"""

from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_propagator = TraceContextTextMapPropagator()


def inject() -> dict[str, str]:
    """Headers of the current span: `traceparent`, and `tracestate` if there is one; empty outside of any trace."""
    headers: dict[str, str] = {}
    _propagator.inject(headers)
    return headers


def extract(headers: Mapping[str, str]) -> Context:
    """The context that `headers` (lower-case names) describe; an empty one when they are absent or malformed."""
    return _propagator.extract(headers)
