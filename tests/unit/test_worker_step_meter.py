"""What a worker counts of its steps, and what metrics and spans tell of it."""

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from forebay.engine.step_totals import StepTotals
from forebay.engine.types import SamplingParams, Sequence, Slice
from forebay.kernels.peaks import Arithmetic, Peaks
from forebay.telemetry import metrics, spans
from forebay.testing.fake_engine import MODEL_COST
from forebay.worker.step_meter import Phase, StepMeter
from forebay.worker.step_metrics import offer_step_metrics, step_attributes

PEAKS = Peaks(4, dict.fromkeys(Arithmetic, 4000.0), 1000.0, 500.0)


def decoding(computed: int = 9) -> Slice:
    sequence = Sequence("d", [5] * computed, SamplingParams(max_tokens=9, seed=0), [], computed, [7])
    return Slice(sequence, 1)


def prompt(count: int = 4, total: int = 6) -> Slice:
    return Slice(Sequence("p", [5] * total, SamplingParams(max_tokens=9, seed=0), []), count)


def test_steps_count_as_prefill_as_soon_as_a_prompt_is_among_them() -> None:
    meter = StepMeter(MODEL_COST)
    meter.note([decoding(), decoding()], 1, 0.5)
    meter.note([decoding(), prompt()], 1, 0.25)
    decode, prefill = meter.totals(Phase.DECODE), meter.totals(Phase.PREFILL)
    assert (decode.step_count, decode.busy_s) == (1, 0.5)
    assert (prefill.step_count, prefill.busy_s) == (1, 0.25)
    assert decode.operations == 2 * 200 + 2 * 50 + 20 * 8
    assert prefill.operations == 5 * 200 + 1 * 50 + (10 + 10) * 8
    assert decode.moved_bytes == 100 + 25 + 22 * 16


def test_steps_are_compared_from_when_the_peaks_are_known() -> None:
    meter = StepMeter(MODEL_COST)
    meter.note([decoding()], 2, 8.0)
    assert meter.totals(Phase.DECODE).flops_utilization is None
    meter.use_peaks(PEAKS)
    meter.note([decoding()], 2, 0.5)
    machine_operations, moved_bytes = 400 + 100 + 80, 100 + 25 + 11 * 16
    totals = meter.totals(Phase.DECODE)
    assert totals.flops_utilization == pytest.approx(machine_operations / 2000 / 0.5)
    assert totals.bandwidth_utilization == pytest.approx(moved_bytes / 1000 / 0.5)


def collected(reader: InMemoryMetricReader) -> dict[tuple[str, str], float]:
    """Value by metric and phase."""
    data = reader.get_metrics_data()
    points = [
        (one.name, point)
        for resource in (data.resource_metrics if data else [])
        for scope in resource.scope_metrics
        for one in scope.metrics
        for point in one.data.data_points
    ]
    assert all(point.attributes[spans.CHIP_CLASS] == "cpu-x" for _, point in points)
    return {(name, point.attributes[metrics.PHASE]): point.value for name, point in points}


def test_collectors_get_counts_since_the_start_and_shares_since_the_last_time(reader: InMemoryMetricReader) -> None:
    meter = StepMeter(MODEL_COST)
    offer_step_metrics(meter, "cpu-x")
    meter.note([decoding()], 2, 0.5)
    first = collected(reader)
    assert first[metrics.STEP_COUNT, "decode"] == 1
    assert first[metrics.STEP_COUNT, "prefill"] == 0
    assert not any("utilization" in name for name, _ in first), "the peaks are not known"
    meter.use_peaks(PEAKS)
    meter.note([decoding()], 2, 0.5)
    meter.note([decoding()], 2, 1.0)
    second = collected(reader)
    totals = meter.totals(Phase.DECODE)
    assert second[metrics.STEP_COUNT, "decode"] == 3
    assert second[metrics.STEP_BUSY_S, "decode"] == 2.0
    assert second[metrics.STEP_OPERATIONS, "decode"] == totals.operations
    assert second[metrics.STEP_MOVED_BYTES, "decode"] == totals.moved_bytes
    assert second[metrics.STEP_FLOPS_UTILIZATION, "decode"] == pytest.approx(2 * 580 / 2000 / 1.5)
    assert second[metrics.STEP_BANDWIDTH_UTILIZATION, "decode"] == pytest.approx(2 * 301 / 1000 / 1.5)
    meter.note([decoding()], 2, 0.58)
    assert collected(reader)[metrics.STEP_FLOPS_UTILIZATION, "decode"] == pytest.approx(0.5)
    assert not any("utilization" in name for name, _ in collected(reader)), "no step since"


def test_spans_tell_rates_always_and_shares_where_peaks_are_known() -> None:
    meter = StepMeter(MODEL_COST)
    assert step_attributes(StepTotals()) == {}
    totals = StepTotals().plus(meter.note([decoding()], 2, 0.5))
    assert step_attributes(totals) == {spans.OPERATION_RATE: 660.0, spans.MEMORY_RATE: 602.0}
    meter.use_peaks(PEAKS)
    totals = StepTotals().plus(meter.note([decoding()], 2, 0.5))
    assert step_attributes(totals).keys() == {
        spans.OPERATION_RATE,
        spans.MEMORY_RATE,
        spans.FLOPS_UTILIZATION,
        spans.BANDWIDTH_UTILIZATION,
    }
