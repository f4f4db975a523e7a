"""The way of a process's metrics to a collector, if one is named. Knows the SDK, whose OTEL_* variables hold.

Loaded only then: it costs start-up time and memory.
"""

import logging
import threading
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource

from forebay.telemetry.metering import use_meter_provider
from forebay.telemetry.outage import Outage


class GuardedMetricExporter(MetricExporter):
    """Passes metrics on to `inner`, whose failures are logged once and never reach those who serve."""

    def __init__(self, inner: MetricExporter, destination: str) -> None:
        super().__init__(inner._preferred_temporality, inner._preferred_aggregation)
        self._inner = inner
        self._outage = Outage("metrics", destination)
        self._stopped = threading.Event()

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **more: Any) -> MetricExportResult:
        """SUCCESS or FAILURE; raises nothing. Counters are sums, so what fails once is made good by the next."""
        try:
            result = self._inner.export(metrics_data, timeout_millis, **more)
        except Exception as error:  # whatever it is, serving goes on
            self._outage.fail(1, f"{type(error).__name__}: {error}")
            return MetricExportResult.FAILURE
        if result is MetricExportResult.SUCCESS:
            self._outage.succeed()
        else:
            self._outage.fail(1, "not accepted")
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """As `inner`."""
        return self._inner.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **more: Any) -> None:
        """Gives up what is under way. May be called from any thread, and twice."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._inner.shutdown(timeout_millis, **more)


class MetricPipeline:
    """The metrics of this process, from now to `shutdown`."""

    def __init__(self, resource: Resource) -> None:
        # It logs every attempt; the guard says it once.
        logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.CRITICAL)
        self._exporter = GuardedMetricExporter(OTLPMetricExporter(), "the OTLP collector")
        self._provider = MeterProvider(
            [PeriodicExportingMetricReader(self._exporter)], resource, shutdown_on_exit=False
        )
        use_meter_provider(self._provider)

    def flush(self) -> None:
        """Sends what there is now. Blocks as long as the collector does."""
        self._provider.force_flush()

    def shutdown(self, timeout_s: float) -> None:
        """Sends what is left, for at most about `timeout_s` seconds, and stops."""
        # The SDK would wait longer for a collector that is away; stopping the exporter makes its thread return.
        timer = threading.Timer(timeout_s, self._exporter.shutdown)
        timer.daemon = True
        timer.start()
        self._provider.shutdown(timeout_s * 1e3 + 500)
        timer.cancel()
        use_meter_provider(None)
