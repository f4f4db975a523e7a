"""Traces and logs of one process: `configure` and `configure_logging` once, then `tracer`, `span`, `inject`, `extract`.

Importing this room needs the OpenTelemetry API alone; the SDK is loaded by `configure`, which only services call.
"""

from forebay.telemetry.logs import configure_logging
from forebay.telemetry.propagation import extract, inject
from forebay.telemetry.setup import configure
from forebay.telemetry.tracing import span, tracer

__all__ = ["configure", "configure_logging", "extract", "inject", "span", "tracer"]
