"""How often and how long a worker's sequences were left out of steps, and what metrics and spans tell of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.util.types import AttributeValue

from forebay.telemetry import meter, metrics, spans


@dataclass(slots=True)
class Pauses:
    """Pauses that are over. One is a run of steps, between two of a sequence's own, that computed only others."""

    count: int = 0
    duration_s: float = 0.0

    def add(self, paused_s: float) -> None:
        """Counts one more."""
        self.count += 1
        self.duration_s += paused_s

    def attributes(self) -> dict[str, AttributeValue]:
        """Of a request's span; none where nothing was paused."""
        return {spans.PAUSES: self.count, spans.PAUSED_S: self.duration_s} if self.count else {}


def offer_pause_metrics(pauses: Pauses, chip_class: str) -> None:
    """From now on whoever collects this process's metrics is told of all its sequences' pauses."""

    def counter(read: Callable[[], float]) -> list[Callable[[CallbackOptions], Iterable[Observation]]]:
        return [lambda _: [Observation(read(), {spans.CHIP_CLASS: chip_class})]]

    meter().create_observable_counter(metrics.PAUSE_COUNT, counter(lambda: pauses.count), "{pause}")
    meter().create_observable_counter(metrics.PAUSE_S, counter(lambda: pauses.duration_s), "s")
