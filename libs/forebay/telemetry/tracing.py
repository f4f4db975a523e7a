"""The tracer of this process, and spans that end well whatever is raised inside them.

Knows neither exporters nor sampling. Without `configure` it uses OpenTelemetry's global provider, so that the client
SDK joins whatever tracing its host program has set up, or costs next to nothing when there is none.
"""

from asyncio import CancelledError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider, get_tracer_provider
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


@contextmanager
def span(
    name: str,
    attributes: Mapping[str, AttributeValue] | None = None,
    *,
    context: Context | None = None,
    kind: SpanKind = SpanKind.INTERNAL,
) -> Iterator[Span]:
    """A current span around a block. An exception marks it failed by its reason or type, never by its text.

    A cancelled block is marked `error.type=CANCELLED` but not failed: the caller went away.
    """
    with tracer().start_as_current_span(
        name, context, kind, attributes, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except CancelledError:
            current.set_attribute(spans.ERROR_TYPE, "CANCELLED")
            raise
        except Exception as error:
            reason = error.reason if isinstance(error, ForebayError) else type(error).__name__
            current.set_attribute(spans.ERROR_TYPE, reason)
            current.set_status(Status(StatusCode.ERROR, reason))
            raise
