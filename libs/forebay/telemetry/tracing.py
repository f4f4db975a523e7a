"""The tracer of this process, and spans that end well whatever is raised inside them.

Knows neither exporters nor sampling. Without `configure` it uses OpenTelemetry's global provider, so that the client
SDK joins whatever tracing its host program has set up, or costs next to nothing when there is none.
"""

from asyncio import CancelledError
from collections.abc import Mapping

from opentelemetry.context import Context, attach, detach
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    TracerProvider,
    get_tracer_provider,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from forebay.errors import ForebayError
from forebay.telemetry import spans

_SCOPE = "forebay"
_configured: Tracer | None = None


def tracer() -> Tracer:
    """The tracer to make all spans with. Ask each time; a kept one would not see a later `configure`."""
    return _configured or get_tracer_provider().get_tracer(_SCOPE)


def use_provider(provider: TracerProvider | None) -> None:
    """Makes `tracer` use this provider; None goes back to the global one.

    The global provider itself can be set once per process only, so it is left to the host program.
    """
    global _configured  # noqa: PLW0603  # the tracer is process-wide by nature, like the loggers
    _configured = None if provider is None else provider.get_tracer(_SCOPE)


class span:  # noqa: N801  # a block, used like a function; a generator would take twice as long
    """A current span around a block. An exception marks it failed by its reason or type, never by its text.

    A cancelled block is marked `error.type=CANCELLED` but not failed: the caller went away.
    """

    __slots__ = ("_arguments", "_span", "_token")

    def __init__(
        self,
        name: str,
        attributes: Mapping[str, AttributeValue] | None = None,
        *,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        self._arguments = name, context, kind, attributes

    def __enter__(self) -> Span:
        """The span, begun."""
        self._span = tracer().start_span(*self._arguments)
        self._token = attach(set_span_in_context(self._span))
        return self._span

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Its end."""
        detach(self._token)
        if isinstance(error, CancelledError):
            self._span.set_attribute(spans.ERROR_TYPE, "CANCELLED")
        elif isinstance(error, Exception):
            reason = error.reason if isinstance(error, ForebayError) else type(error).__name__
            self._span.set_attribute(spans.ERROR_TYPE, reason)
            self._span.set_status(Status(StatusCode.ERROR, reason))
        self._span.end()
