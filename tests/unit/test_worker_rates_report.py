"""What a worker tells of its speed: its model's size, its rates, and these again when they have changed."""

import asyncio
import dataclasses

import pytest

from forebay.chips.fleet_file import ClassFigures
from forebay.engine.reached_rates import ReachedRates
from forebay.engine.step_cost import ModelCost, Operations
from forebay.kernels.peaks import Arithmetic, Peaks
from forebay.kv.layout import KvDtype, KvLayout
from forebay.routing.cost import ChipRates, ModelSize, StepCost
from forebay.testing.fake_engine import MODEL_COST
from forebay.testing.waiting import until
from forebay.worker.rates_report import RatesReport, chip_rates, model_size

FIGURES = ClassFigures(watts=45.0, usd_per_hour=0.08, step_overhead_s=0.001)
RATES = ChipRates(0.001, 1e9, 1e8)


def test_the_planner_counts_the_operations_that_the_worker_counts() -> None:
    layout = KvLayout(KvDtype.BFLOAT16, layers=3, kv_heads=1, head_dim=4)
    cost = ModelCost(
        row_operations=Operations(2_000, {Arithmetic.F32: 2_000}),
        head_operations=Operations(50, {Arithmetic.F32: 50}),
        attention_operations=Operations(4 * 3 * 8, {Arithmetic.F32: 96}),
        layer_bytes=700,
        head_bytes=30,
        kv_token_bytes=12,
    )
    size = model_size(cost, layout)
    assert size == ModelSize(parameters=1_000, weight_bytes=730, kv_token_bytes=12, layers=3, width=8)
    # 10 rows behind 20 cached attend to 21 + … + 30 = 255 tokens; the formula counts 250: half a token less a row
    seconds = StepCost(size, ChipRates(0.0, 1.0, 1.0)).prefill_s(30, 20)
    assert seconds == 10 * 2_000 + 250 * 96


def test_what_is_measured_wins_over_what_is_said_and_this_over_nothing() -> None:
    reached = ReachedRates(MODEL_COST, 1)
    assert chip_rates(FIGURES, reached) is None
    said = dataclasses.replace(FIGURES, flops_per_s=7.0, bytes_per_s=8.0)
    assert chip_rates(said, reached) == ChipRates(0.001, 7.0, 8.0, 45.0, 0.08)
    reached.expect(Peaks(1, dict.fromkeys(Arithmetic, 4000.0), 1000.0, 1000.0))
    measured = chip_rates(said, reached)
    assert measured is not None
    assert (measured.flops_per_s, measured.bytes_per_s) == pytest.approx((1400.0, 600.0))


async def test_rates_are_told_when_they_are_known_and_when_they_have_changed_by_a_tenth() -> None:
    now: list[ChipRates | None] = [None]
    told: list[ChipRates] = []
    looks = 0

    def read() -> ChipRates | None:
        nonlocal looks
        looks += 1
        return now[0]

    async def look_twice() -> None:
        seen = looks
        await until(lambda: looks >= seen + 2)

    report = RatesReport(read, told.append, interval_s=0.001)
    report.start()
    await look_twice()
    assert told == []
    for factor in (1.0, 1.05, 0.95, 1.2):
        now[0] = dataclasses.replace(RATES, bytes_per_s=RATES.bytes_per_s * factor)
        await look_twice()
    await report.close()
    assert [rates.bytes_per_s for rates in told] == [1e8, pytest.approx(1.2e8)]
    seen = looks
    await asyncio.sleep(0)
    assert looks == seen
