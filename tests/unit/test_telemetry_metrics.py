"""Metrics go to a collector when one is named, and cost nobody anything when it is away."""

import logging
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, MetricsData

from forebay.telemetry import configure, meter, metrics, spans
from forebay.telemetry.metric_pipeline import GuardedMetricExporter

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@pytest.fixture(autouse=True)
def no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests has no say."""
    for name in (*_ENDPOINTS, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_METRICS_EXPORTER", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)


class _Collector(metrics_service_pb2_grpc.MetricsServiceServicer):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        self.requests: list[metrics_service_pb2.ExportMetricsServiceRequest] = []

    def Export(
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: grpc.ServicerContext
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        self.requests.append(request)
        return metrics_service_pb2.ExportMetricsServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[_Collector, str]]:
    collector, server = _Collector(), grpc.server(futures.ThreadPoolExecutor(1))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_collector_gets_metrics_when_one_is_named(
    monkeypatch: pytest.MonkeyPatch, collector: tuple[_Collector, str]
) -> None:
    monkeypatch.setenv(_ENDPOINTS[0], collector[1])
    telemetry = configure("decode", state_dir=None, attributes={spans.NODE_ID: "n1"})
    steps = meter().create_counter(metrics.STEP_COUNT)
    steps.add(3)
    telemetry.flush()
    steps.add(2)
    telemetry.shutdown()
    values = []
    for request in collector[0].requests:
        (group,) = request.resource_metrics
        resource = {item.key: item.value.string_value for item in group.resource.attributes}
        assert (resource["service.name"], resource[spans.NODE_ID]) == ("decode", "n1")
        values += [one.sum.data_points[0].as_int for scope in group.scope_metrics for one in scope.metrics]
    assert values == [3, 5], "a sum since the start; what is left is sent at the end"


def test_metrics_can_be_switched_off_alone(monkeypatch: pytest.MonkeyPatch, collector: tuple[_Collector, str]) -> None:
    monkeypatch.setenv(_ENDPOINTS[1], collector[1])
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    telemetry = configure("decode", state_dir=None, attributes={})
    meter().create_counter(metrics.STEP_COUNT).add(1)
    telemetry.shutdown()
    assert collector[0].requests == []


def test_a_collector_that_is_away_is_told_of_once_and_delays_nobody(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(_ENDPOINTS[0], "http://127.0.0.1:1")
    with caplog.at_level(logging.WARNING):
        telemetry = configure("decode", state_dir=None, attributes={})
        meter().create_counter(metrics.STEP_COUNT).add(1)
        telemetry.shutdown(timeout_s=0.1)
        telemetry.shutdown()
    (message,) = caplog.messages
    assert "metrics do not reach the OTLP collector" in message


class _Scripted(MetricExporter):
    """Answers as it is told."""

    def __init__(self, *answers: MetricExportResult | Exception) -> None:
        super().__init__()
        self._answers = list(answers)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 0, **_: object) -> MetricExportResult:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **_: object) -> None:
        self._answers.append(MetricExportResult.FAILURE)


def test_an_outage_is_told_of_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    failure, success = MetricExportResult.FAILURE, MetricExportResult.SUCCESS
    guarded = GuardedMetricExporter(_Scripted(failure, KeyError("x"), success, success), "nowhere")
    with caplog.at_level(logging.WARNING):
        results = [guarded.export(MetricsData([])) for _ in range(4)]
    assert results == [failure, failure, success, success]
    assert [message.partition(" (")[0] for message in caplog.messages] == [
        "metrics do not reach nowhere",
        "metrics reach nowhere again; 2 were lost so far",
    ]
