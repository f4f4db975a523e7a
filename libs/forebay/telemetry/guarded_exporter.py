"""An exporter whose failures are counted and logged once, and never reach those who serve.

Knows nothing of where the spans go. It runs on the batch processor's thread.
"""

import threading
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from forebay.telemetry.outage import Outage


class GuardedExporter(SpanExporter):
    """Passes batches on to `inner`.

    Args:
        inner: where they go; may raise anything.
        destination: what the log calls it.
    """

    def __init__(self, inner: SpanExporter, destination: str) -> None:
        self._inner = inner
        self._outage = Outage("spans", destination)
        self._stopped = threading.Event()

    @property
    def lost_spans_count(self) -> int:
        """Spans that did not arrive since the start."""
        return self._outage.lost_count

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """SUCCESS or FAILURE; raises nothing. A failed batch is given up: newer spans matter more."""
        if self._stopped.is_set():
            return self._lose(len(spans), "shut down")
        try:
            result = self._inner.export(spans)
        except Exception as error:  # whatever it is, serving goes on
            return self._lose(len(spans), f"{type(error).__name__}: {error}")
        if result is not SpanExportResult.SUCCESS:
            return self._lose(len(spans), "not accepted")
        self._outage.succeed()
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Gives up what is under way and refuses what comes after. May be called from any thread, and twice."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """As `inner`."""
        return self._inner.force_flush(timeout_millis)

    def _lose(self, count: int, reason: str) -> SpanExportResult:
        self._outage.fail(count, reason)
        return SpanExportResult.FAILURE
