"""The way of a span from its end to its destinations: the node's SQLite file and, if one is named, a collector.

Metrics go to a collector only; `metric_pipeline` has their way.

Knows the SDK, whose standard OTEL_* variables hold; what is traced it does not know. Imported by `configure` alone.
"""

import atexit
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from forebay.telemetry.guarded_exporter import GuardedExporter
from forebay.telemetry.span_schema import store_path
from forebay.telemetry.sqlite_exporter import SqliteSpanExporter
from forebay.telemetry.tracing import use_provider

if TYPE_CHECKING:
    from forebay.telemetry.metric_pipeline import MetricPipeline

_SCHEDULE_DELAY_MS = 500
_QUEUE_SPANS = 8192
_ATTRIBUTE_CHARACTERS = 1024
_OTLP_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_OTLP_METRIC_VARIABLES = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_LEAST_SHUTDOWN_S = 0.1


class Telemetry:
    """The tracing of this process and, if somebody collects them, its metrics, from `configure` to `shutdown`."""

    def __init__(
        self, provider: TracerProvider, exporters: Sequence[GuardedExporter], metrics: "MetricPipeline | None" = None
    ) -> None:
        self._provider = provider
        self._metrics = metrics
        self._exporters = exporters
        self._is_shut_down = False
        use_provider(provider)
        atexit.register(self.shutdown)

    @property
    def lost_spans_count(self) -> int:
        """Spans that some destination did not take, summed over destinations."""
        return sum(exporter.lost_spans_count for exporter in self._exporters)

    def flush(self) -> None:
        """Writes out all ended spans and what the metrics are now. Blocks as long as the destinations do."""
        self._provider.force_flush()
        if self._metrics is not None:
            self._metrics.flush()

    def shutdown(self, timeout_s: float = 3.0) -> None:
        """Writes out what is left, for at most about `timeout_s` seconds, and stops. A second call does nothing."""
        if self._is_shut_down:
            return
        self._is_shut_down = True
        ends_s = time.monotonic() + timeout_s
        atexit.unregister(self.shutdown)
        # The SDK would wait 30 s for a collector that is away; stopping the exporters makes its threads return.
        timers = [threading.Timer(timeout_s, exporter.shutdown) for exporter in self._exporters]
        for timer in timers:
            timer.daemon = True
            timer.start()
        self._provider.shutdown()
        for timer in timers:
            timer.cancel()
        use_provider(None)
        if self._metrics is not None:
            self._metrics.shutdown(max(_LEAST_SHUTDOWN_S, ends_s - time.monotonic()))


def start(service_name: str, *, state_dir: Path | None, attributes: Mapping[str, str]) -> Telemetry:
    """As `forebay.telemetry.configure`, which loads this module."""
    # No sampler given: the SDK takes OTEL_TRACES_SAMPLER, by default parentbased_always_on.
    resource = Resource.create({**attributes, SERVICE_NAME: service_name})
    provider = TracerProvider(
        resource=resource,
        span_limits=SpanLimits(max_span_attribute_length=_ATTRIBUTE_CHARACTERS),
        shutdown_on_exit=False,
    )
    exporters = _exporters(state_dir)
    for exporter in exporters:
        provider.add_span_processor(_batched(exporter))
    return Telemetry(provider, exporters, _metrics(resource))


def _metrics(resource: Resource) -> "MetricPipeline | None":
    is_wanted = os.environ.get("OTEL_METRICS_EXPORTER") != "none"
    if not (is_wanted and any(os.environ.get(name) for name in _OTLP_METRIC_VARIABLES)):
        return None
    # Imported here: it costs start-up time and memory, and most processes export nowhere.
    from forebay.telemetry.metric_pipeline import MetricPipeline  # noqa: PLC0415

    return MetricPipeline(resource)


def _exporters(state_dir: Path | None) -> list[GuardedExporter]:
    exporters = []
    if state_dir is not None:
        path = store_path(state_dir)
        exporters.append(GuardedExporter(SqliteSpanExporter(path), str(path)))
    if any(os.environ.get(name) for name in _OTLP_VARIABLES):
        exporters.append(_otlp_exporter())
    return exporters


def _otlp_exporter() -> GuardedExporter:
    # Imported here: it costs start-up time and memory, and most processes export nowhere.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    # It logs every attempt; the guard says it once.
    logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
    return GuardedExporter(OTLPSpanExporter(), "the OTLP collector")


def _batched(exporter: GuardedExporter) -> BatchSpanProcessor:
    delay_is_set = "OTEL_BSP_SCHEDULE_DELAY" in os.environ
    queue_is_set = "OTEL_BSP_MAX_QUEUE_SIZE" in os.environ
    return BatchSpanProcessor(
        exporter,
        max_queue_size=None if queue_is_set else _QUEUE_SPANS,
        schedule_delay_millis=None if delay_is_set else _SCHEDULE_DELAY_MS,
    )
