"""Channels to other services.

Every unary call and every server stream opened here has a deadline and carries the trace context. Bidirectional streams
are long-lived links between services: they carry neither, their messages do.
"""

from collections.abc import AsyncIterator, Callable
from typing import Any, Final, Self

import grpc
from grpc.aio import Channel, ClientCallDetails, Metadata, UnaryStreamClientInterceptor

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
    return _ContextChannel(grpc.aio.insecure_channel(address, options=_OPTIONS, interceptors=[_StreamContext()]))


class _StreamContext(UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], client_call_details: ClientCallDetails, request: Any
    ) -> AsyncIterator[Any]:
        details = client_call_details
        metadata = Metadata(*_with_trace(details.metadata))
        timeout_s = shorter(details.timeout, DEFAULT_STREAM_TIMEOUT_S)
        call: AsyncIterator[Any] = await continuation(
            ClientCallDetails(details.method, timeout_s, metadata, details.credentials, details.wait_for_ready), request
        )
        return call


class _ContextChannel(Channel):
    """The inner channel, whose unary calls have the context of whoever makes them.

    Not by an interceptor: that makes each call a task of its own, which takes longer than all that is done here.
    """

    def __init__(self, inner: Channel) -> None:
        self._inner = inner

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _in_context(self._inner.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._inner.unary_stream(*arguments, **options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return self._inner.stream_unary(*arguments, **options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return self._inner.stream_stream(*arguments, **options)

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _in_context(method: Callable[..., Any]) -> Callable[..., Any]:
    def call(request: Any, *, timeout: float | None = None, metadata: Any = None, **options: Any) -> Any:
        timeout_s = shorter(timeout, DEFAULT_UNARY_TIMEOUT_S)
        return method(request, timeout=timeout_s, metadata=_with_trace(metadata), **options)

    return call


def _with_trace(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    return (*(metadata or ()), *inject().items())
