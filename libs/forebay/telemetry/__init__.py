"""Traces, metrics and logs of one process: `configure` and `configure_logging` once, then the other functions.

Importing this room needs the OpenTelemetry API alone; the SDK is loaded by `configure`, which only services call.
"""

from forebay.telemetry.logs import configure_logging
from forebay.telemetry.metering import meter
from forebay.telemetry.propagation import extract, inject
from forebay.telemetry.setup import configure
from forebay.telemetry.tracing import span, tracer

__all__ = ["configure", "configure_logging", "extract", "inject", "meter", "span", "tracer"]
