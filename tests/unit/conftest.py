"""What several unit tests share."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from forebay.telemetry.metering import use_meter_provider

# For runs in which each example takes long, under sanitizers.
settings.register_profile("few", max_examples=5)


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    """Of the metrics that are offered while the test runs."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    use_meter_provider(provider)
    yield reader
    use_meter_provider(None)
    provider.shutdown()
