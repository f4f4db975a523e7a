"""The meter of this process. Knows neither exporters nor what is measured; like `tracing`, but for metrics."""

from opentelemetry.metrics import Meter, MeterProvider, get_meter_provider

_SCOPE = "forebay"
_configured: Meter | None = None


def meter() -> Meter:
    """The meter to make all instruments with, after `configure`."""
    return _configured or get_meter_provider().get_meter(_SCOPE)


def use_meter_provider(provider: MeterProvider | None) -> None:
    """Makes `meter` use this provider; None goes back to the global one."""
    global _configured  # noqa: PLW0603  # process-wide by nature, like the tracer
    _configured = None if provider is None else provider.get_meter(_SCOPE)
