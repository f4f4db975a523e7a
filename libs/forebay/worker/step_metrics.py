"""A worker's steps as OpenTelemetry metrics and as attributes of a request's span. Counts nothing itself."""

from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.util.types import AttributeValue

from forebay.engine.step_totals import StepTotals
from forebay.telemetry import meter, metrics, spans
from forebay.worker.step_meter import Phase, StepMeter

Callback = Callable[[CallbackOptions], Iterable[Observation]]


def offer_step_metrics(steps: StepMeter, chip_class: str) -> None:
    """From now on whoever collects this process's metrics is told of its steps.

    Counters since the start; utilizations as means over the steps since the collection before.
    """

    def labels(phase: Phase) -> dict[str, AttributeValue]:
        return {metrics.PHASE: phase.value, spans.CHIP_CLASS: chip_class}

    def counter(read: Callable[[StepTotals], float]) -> list[Callback]:
        return [lambda _: [Observation(read(steps.totals(phase)), labels(phase)) for phase in Phase]]

    def gauge(read: Callable[[StepTotals], float | None]) -> list[Callback]:
        before = {phase: steps.totals(phase) for phase in Phase}

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            for phase in Phase:
                now = steps.totals(phase)
                share = read(now.since(before[phase]))
                before[phase] = now
                if share is not None:
                    yield Observation(share, labels(phase))

        return [observe]

    make = meter()
    make.create_observable_counter(metrics.STEP_COUNT, counter(lambda one: one.step_count), "{step}")
    make.create_observable_counter(metrics.STEP_BUSY_S, counter(lambda one: one.busy_s), "s")
    make.create_observable_counter(metrics.STEP_OPERATIONS, counter(lambda one: one.operations), "{operation}")
    make.create_observable_counter(metrics.STEP_MOVED_BYTES, counter(lambda one: one.moved_bytes), "By")
    make.create_observable_gauge(metrics.STEP_FLOPS_UTILIZATION, gauge(lambda one: one.flops_utilization), "1")
    make.create_observable_gauge(metrics.STEP_BANDWIDTH_UTILIZATION, gauge(lambda one: one.bandwidth_utilization), "1")


def step_attributes(totals: StepTotals) -> dict[str, AttributeValue]:
    """Means over the steps that a request took part in, weighted by their time; what is not known is left out."""
    known = {
        spans.FLOPS_UTILIZATION: totals.flops_utilization,
        spans.BANDWIDTH_UTILIZATION: totals.bandwidth_utilization,
        spans.OPERATION_RATE: totals.operation_rate,
        spans.MEMORY_RATE: totals.memory_rate,
    }
    return {name: value for name, value in known.items() if value is not None}
