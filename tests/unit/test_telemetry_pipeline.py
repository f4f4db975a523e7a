"""From `configure` to the destinations: resource, sampling, propagation, failing blocks, a collector near or away."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from forebay.errors import KvExhaustedError
from forebay.telemetry import configure, extract, inject, span, spans, tracer
from forebay.telemetry.guarded_exporter import GuardedExporter
from forebay.telemetry.pipeline import Telemetry
from forebay.telemetry.span_schema import store_path
from forebay.telemetry.span_store import SpanStore, SpanStoreError, StoredSpan

_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.fixture(autouse=True)
def no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests has no say."""
    for name in (_ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def telemetry(tmp_path: Path) -> Iterator[Telemetry]:
    telemetry = configure("decode", state_dir=tmp_path, attributes={spans.NODE_ID: "n1", spans.WORKER_ID: "w1"})
    yield telemetry
    telemetry.shutdown()


def stored(state_dir: Path) -> list[StoredSpan]:
    """All spans of the only stored trace."""
    store = SpanStore(store_path(state_dir))
    (summary,) = store.recent(2)
    return store.trace(summary.trace_id)


def test_shutdown_writes_what_is_left(telemetry: Telemetry, tmp_path: Path) -> None:
    with span(spans.DECODE, {spans.DECODE_STEPS: 3}), span(spans.KV_ACQUIRE):
        pass
    telemetry.shutdown()
    decode, acquire = stored(tmp_path)
    assert (decode.name, decode.service, decode.parent_span_id) == ("decode", "decode", None)
    assert decode.attributes == {spans.NODE_ID: "n1", spans.WORKER_ID: "w1", spans.DECODE_STEPS: 3}
    assert (acquire.name, acquire.parent_span_id) == ("kv.acquire", decode.span_id)
    assert decode.start_ns <= acquire.start_ns <= acquire.end_ns <= decode.end_ns
    assert telemetry.lost_spans_count == 0


def test_flush_writes_while_running(telemetry: Telemetry, tmp_path: Path) -> None:
    with span(spans.PLAN):
        pass
    telemetry.flush()
    assert [one.name for one in stored(tmp_path)] == ["plan"]


def test_after_shutdown_spans_are_not_recorded(telemetry: Telemetry) -> None:
    assert tracer().start_span("x").is_recording()
    telemetry.shutdown()
    telemetry.shutdown()
    # Whatever the host program has set up, which here is nothing.
    assert not tracer().start_span("x").is_recording()


def test_trace_goes_on_in_another_process(telemetry: Telemetry, tmp_path: Path) -> None:
    with span(spans.GENERATE):
        headers = inject()
    assert set(headers) == {"traceparent"}
    with span(spans.PREFILL, context=extract(headers)):
        pass
    telemetry.shutdown()
    generate, prefill = stored(tmp_path)
    assert (prefill.trace_id, prefill.parent_span_id) == (generate.trace_id, generate.span_id)


def test_outside_of_a_span_there_is_nothing_to_inject() -> None:
    assert inject() == {}


@pytest.mark.parametrize("headers", [{}, {"traceparent": "nonsense"}, {"traceparent": f"00-{'0' * 32}-{'1' * 16}-01"}])
def test_malformed_headers_begin_a_new_trace(telemetry: Telemetry, headers: dict[str, str]) -> None:
    with span(spans.GENERATE), span(spans.PREFILL, context=extract(headers)) as current:
        assert trace.get_current_span() is current
        parent = getattr(current, "parent", "unset")
    assert parent is None


def test_failed_block_tells_its_reason_never_its_text(telemetry: Telemetry, tmp_path: Path) -> None:
    with span(spans.GENERATE):
        with pytest.raises(KvExhaustedError), span("ours") as ours:
            raise KvExhaustedError("secret")
        with pytest.raises(KeyError), span("theirs"):
            raise KeyError("secret")
        with pytest.raises(asyncio.CancelledError), span("cancelled"):
            raise asyncio.CancelledError("secret")
    telemetry.shutdown()
    assert isinstance(ours, ReadableSpan)
    assert (ours.status.description, ours.events) == ("KV_EXHAUSTED", ())
    root, *failed = stored(tmp_path)
    assert root.status == "UNSET"
    assert [(one.name, one.status, one.attributes[spans.ERROR_TYPE]) for one in failed] == [
        ("ours", "ERROR", "KV_EXHAUSTED"),
        ("theirs", "ERROR", "KeyError"),
        ("cancelled", "UNSET", "CANCELLED"),
    ]


def test_long_attributes_are_cut(telemetry: Telemetry, tmp_path: Path) -> None:
    with span(spans.PLAN, {spans.PLAN_REASON: "x" * 5000}):
        pass
    telemetry.shutdown()
    assert len(stored(tmp_path)[0].attributes[spans.PLAN_REASON]) == 1024


@pytest.mark.parametrize(
    ("sampler", "parent_flag", "is_recorded"),
    [
        (None, None, True),
        (None, "00", False),
        ("parentbased_always_off", None, False),
        ("parentbased_always_off", "01", True),
        ("always_off", "01", False),
        ("always_on", "00", True),
    ],
)
def test_sampler_of_the_environment_is_honoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str | None, parent_flag: str | None, is_recorded: bool
) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    parent = {} if parent_flag is None else {"traceparent": f"00-{'a' * 32}-{'b' * 16}-{parent_flag}"}
    telemetry = configure("router", state_dir=tmp_path, attributes={})
    with span(spans.GENERATE, context=extract(parent)) as current:
        assert current.is_recording() is is_recorded
        assert inject()["traceparent"].split("-")[1] == f"{current.get_span_context().trace_id:032x}"
    telemetry.shutdown()
    if is_recorded:
        assert [one.name for one in stored(tmp_path)] == ["generate"]
    else:
        with pytest.raises(SpanStoreError):
            stored(tmp_path)


def test_no_state_folder_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    telemetry = configure("router", state_dir=None, attributes={})
    with span(spans.GENERATE):
        pass
    telemetry.shutdown()
    assert list(tmp_path.iterdir()) == []


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[trace_service_pb2.ExportTraceServiceRequest] = []

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()


def test_collector_gets_spans_when_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    collector, server = _Collector(), grpc.server(futures.ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]  # generated
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv(_ENDPOINT, f"http://127.0.0.1:{port}")
    telemetry = configure("router", state_dir=None, attributes={spans.NODE_ID: "n1"})
    with span(spans.GENERATE):
        pass
    telemetry.flush()
    telemetry.shutdown()
    server.stop(None).wait()
    (group,) = [group for request in collector.requests for group in request.resource_spans]
    resource = {item.key: item.value.string_value for item in group.resource.attributes}
    assert (resource["service.name"], resource[spans.NODE_ID]) == ("router", "n1")
    assert resource["service.instance.id"]
    assert [one.name for scope in group.scope_spans for one in scope.spans] == ["generate"]


def test_collector_that_is_away_costs_its_spans_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(_ENDPOINT, "http://127.0.0.1:1")
    with caplog.at_level(logging.WARNING):
        telemetry = configure("router", state_dir=tmp_path, attributes={})
        with span(spans.GENERATE):
            pass
        telemetry.shutdown(timeout_s=0.1)
    assert telemetry.lost_spans_count == 1
    assert [one.name for one in stored(tmp_path)] == ["generate"]
    (message,) = caplog.messages
    assert "spans do not reach the OTLP collector" in message


class _StuckExporter(SpanExporter):
    """Hangs in `export` until it is shut down."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self.was_interrupted = False

    def export(self, _: object) -> SpanExportResult:
        self.was_interrupted = self._stopped.wait(timeout=10)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._stopped.set()


def test_shutdown_does_not_wait_for_a_stuck_destination() -> None:
    stuck, provider = _StuckExporter(), TracerProvider(shutdown_on_exit=False)
    guard = GuardedExporter(stuck, "nowhere")
    provider.add_span_processor(BatchSpanProcessor(guard))
    telemetry = Telemetry(provider, [guard])
    with span(spans.GENERATE):
        pass
    telemetry.shutdown(timeout_s=0.05)
    assert stuck.was_interrupted
    assert telemetry.lost_spans_count == 1
