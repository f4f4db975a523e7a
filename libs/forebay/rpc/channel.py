"""Channels to other services.

Every unary call and every server stream opened here has a deadline and carries the trace context. Bidirectional streams
are long-lived links between services: they carry neither, their messages do.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc
from grpc.aio import (
    Channel,
    ClientCallDetails,
    ClientInterceptor,
    Metadata,
    UnaryStreamClientInterceptor,
    UnaryUnaryClientInterceptor,
)

from forebay.rpc.deadline import shorter
from forebay.telemetry import inject

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
DEFAULT_UNARY_TIMEOUT_S: Final = 10.0
DEFAULT_STREAM_TIMEOUT_S: Final = 3600.0
KEEPALIVE_S: Final = 2.0
"""A connection with calls on it is asked so often whether it is alive."""
KEEPALIVE_TIMEOUT_S: Final = 3.0
"""Of the answer, which the runtime gives without Python."""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Of a network that is cut nobody is told: what runs there is lost after KEEPALIVE_S and KEEPALIVE_TIMEOUT_S.
    ("grpc.keepalive_time_ms", round(KEEPALIVE_S * 1e3)),
    ("grpc.keepalive_timeout_ms", round(KEEPALIVE_TIMEOUT_S * 1e3)),
    ("grpc.http2.max_pings_without_data", 0),
    # Also how long one attempt may take: a busy machine answers late, and a far one later than a tenth of a second.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 250),  # a restarted service is found at once; refused connections are cheap
    # Two channels of one process to one address must not share a connection's fate.
    ("grpc.use_local_subchannel_pool", 1),
    # Loopback and cluster addresses are never reached through an HTTP proxy.
    ("grpc.enable_http_proxy", 0),
)


def open_channel(address: str) -> Channel:
    """A channel to HOST:PORT; connects on first use and reconnects by itself."""
    interceptors: list[ClientInterceptor] = [_UnaryContext(), _StreamContext()]
    return grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=interceptors)


class _UnaryContext(UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(_with_context(client_call_details, DEFAULT_UNARY_TIMEOUT_S), request)


class _StreamContext(UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> AsyncIterator[Any]:
        call: AsyncIterator[Any] = await continuation(
            _with_context(client_call_details, DEFAULT_STREAM_TIMEOUT_S), request
        )
        return call


def _with_context(details: ClientCallDetails, default_timeout_s: float) -> ClientCallDetails:
    metadata = Metadata(*(details.metadata or ()))
    for key, value in inject().items():
        metadata.add(key, value)
    return ClientCallDetails(
        method=details.method,
        timeout=shorter(details.timeout, default_timeout_s),
        metadata=metadata,
        credentials=details.credentials,
        wait_for_ready=details.wait_for_ready,
    )
