"""What happens around every RPC a server serves: a span, the deadline, and errors turned into status.

One interceptor, because the three must nest in one order. Cancellation passes through untouched: the span says
CANCELLED, the handler's `finally` frees. (The contrib instrumentation swallows cancellation on grpc.aio.)
"""

from __future__ import annotations  # grpc's handler types are generic for the type checker only

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from typing import Any

import grpc
from grpc_status import rpc_status
from opentelemetry.trace import SpanKind

from forebay.errors import Code, ForebayError, WorkerLostError
from forebay.rpc.addressee import ADDRESSEE_KEY
from forebay.rpc.deadline import ended_after, limited_to, reset_limit, set_limit
from forebay.rpc.status import located, to_status
from forebay.telemetry import extract, span, spans

_log = logging.getLogger(__name__)

_LIBRARY_SERVICES = "/grpc."
_unary_unary = grpc.unary_unary_rpc_method_handler
_unary_stream = grpc.unary_stream_rpc_method_handler


class ServerContext(grpc.aio.ServerInterceptor):
    """Opens a span per RPC, named by `span_names` (full method → name) or by the method itself.

    Without `begins_traces` only calls that are part of a trace have spans: the front door begins traces, others join.
    Methods mapped to None get no span: long links, whose requests have spans of their own. Health and reflection, which
    grpcio brings, are left as they are.
    A call that lasts `max_call_s` ends with DEADLINE_EXCEEDED, whatever deadline it came with. One that names in its
    metadata another addressee than `serves_as` is refused: it means a process that was here before.
    """

    def __init__(
        self,
        span_names: Mapping[str, str | None],
        *,
        begins_traces: bool,
        max_call_s: float | None = None,
        serves_as: str | None = None,
    ) -> None:
        self._serves_as = serves_as
        self._span_names = span_names
        self._begins_traces = begins_traces
        self._max_call_s = max_call_s

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_LIBRARY_SERVICES):
            return handler
        metadata = {key: value for key, value in handler_call_details.invocation_metadata if isinstance(value, str)}

        # Work that no request waits for, such as releasing blocks, belongs to no trace and must not become one.
        has_trace = self._begins_traces or "traceparent" in metadata
        name = self._span_names.get(method, method.removeprefix("/")) if has_trace else None

        @asynccontextmanager
        async def around(context: Any) -> AsyncIterator[None]:
            self._check_addressee(metadata.get(ADDRESSEE_KEY))
            left_s = [limit_s for limit_s in (context.time_remaining(), self._max_call_s) if limit_s is not None]
            with limited_to(min(left_s, default=None)), _span(name, method, metadata):
                async with ended_after(self._max_call_s, f"a call may take {self._max_call_s or 0:g} s here"):
                    yield

        def briefly_around(context: Any) -> AbstractAsyncContextManager[None]:
            self._check_addressee(metadata.get(ADDRESSEE_KEY))
            return _Limited(context.time_remaining())

        is_brief = name is None and self._max_call_s is None
        return _wrapped(handler, briefly_around if is_brief else around, service_name=method.split("/")[1])

    def _check_addressee(self, addressee: str | None) -> None:
        if addressee is not None and self._serves_as is not None and addressee != self._serves_as:
            raise WorkerLostError(f"{self._serves_as} serves here now, not {addressee}", worker_id=addressee)


class _Limited:
    """As limited_to, but no generator: of a call that takes half a millisecond, two of them take a twentieth."""

    __slots__ = ("_seconds", "_token")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    async def __aenter__(self) -> None:
        self._token = set_limit(self._seconds)

    async def __aexit__(self, *_: object) -> None:
        reset_limit(self._token)


def _wrapped(
    handler: Any, around: Callable[[Any], AbstractAsyncContextManager[None]], service_name: str
) -> grpc.RpcMethodHandler[Any, Any]:
    """The same handler inside `around`, with error translation; the request side may be unary or a stream."""
    if handler.response_streaming:
        inner = handler.unary_stream or handler.stream_stream

        # A coroutine that writes, not a generator: a cancel is then raised inside it, and the inner generator's
        # `finally` runs at once, in this task and context, instead of whenever the generator is collected.
        async def streaming(request: Any, context: Any) -> None:
            async with (
                _Reported(context, service_name),
                around(context),
                aclosing(inner(request, context)) as responses,
            ):
                async for response in responses:
                    await context.write(response)

        make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else _unary_stream
        return make(streaming, handler.request_deserializer, handler.response_serializer)

    inner_unary = handler.unary_unary or handler.stream_unary

    async def unary(request: Any, context: Any) -> Any:
        async with _Reported(context, service_name), around(context):
            return await inner_unary(request, context)

    make_unary = grpc.stream_unary_rpc_method_handler if handler.request_streaming else _unary_unary
    return make_unary(unary, handler.request_deserializer, handler.response_serializer)


class _Reported:
    """Ends the call with the status of what is raised inside the block."""

    __slots__ = ("_context", "_service_name")

    def __init__(self, context: Any, service_name: str) -> None:
        self._context = context
        self._service_name = service_name

    async def __aenter__(self) -> None:
        """Nothing to do yet."""

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, grpc.aio.AbortError):
            return
        if not isinstance(error, ForebayError):
            _log.error("unhandled error while serving a call", exc_info=error)
            error = ForebayError("internal error; the service's log says more")
        await self._context.abort_with_status(rpc_status.to_status(to_status(located(error, self._service_name))))


@contextmanager
def _span(name: str | None, method: str, metadata: Mapping[str, str]) -> Iterator[None]:
    if name is None:
        yield
        return
    attributes = {spans.RPC_SYSTEM: "grpc", spans.RPC_METHOD: method.removeprefix("/")}
    with span(name, attributes, context=extract(metadata), kind=SpanKind.SERVER) as current:
        status = 0
        try:
            yield
        except ForebayError as error:
            status = error.code
            raise
        except asyncio.CancelledError:
            status = Code.CANCELLED
            raise
        except Exception:
            status = Code.INTERNAL
            raise
        finally:
            current.set_attribute(spans.RPC_STATUS_CODE, status)
