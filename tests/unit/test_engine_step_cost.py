"""What steps cost, against figures computed by hand; and the peaks they are compared with."""

from pathlib import Path

import pytest

from forebay.chips import chip_class_named
from forebay.chips.kv_layout import layout_for
from forebay.engine.kv_memory import private_memory
from forebay.engine.load import load_engine
from forebay.engine.model_cost import Matrix, model_cost
from forebay.engine.roofline import Roofline
from forebay.engine.step_cost import ModelCost, Operations, StepCost, StepSize
from forebay.engine.step_size import size_of
from forebay.engine.step_totals import MeasuredStep, StepTotals
from forebay.engine.types import SamplingParams, Sequence, Slice
from forebay.kernels.cpu.library import load_library
from forebay.kernels.peaks import Arithmetic, Peaks
from forebay.kv.layout import KvDtype, KvLayout
from forebay.models.config_from_huggingface import config_from_huggingface
from forebay.models.model_file import open_model
from forebay.testing.tiny_models import write_tiny_model

COST = ModelCost(
    row_operations=Operations(1000, {Arithmetic.INT8: 2000}),
    head_operations=Operations(300, {Arithmetic.INT8: 600}),
    attention_operations=Operations(10, {Arithmetic.BF16: 10}),
    layer_bytes=5000,
    head_bytes=700,
    kv_token_bytes=8,
)
PEAKS = Peaks(4, {Arithmetic.F32: 1e3, Arithmetic.BF16: 2e3, Arithmetic.INT8: 4e3}, 900.0, 400.0)


def part(computed: int, count: int, total: int) -> Slice:
    """`count` tokens after `computed` ones of a sequence that has `total`."""
    sequence = Sequence("s", [5] * total, SamplingParams(max_tokens=1, seed=0), [], computed_tokens=computed)
    return Slice(sequence, count)


def test_rows_attend_to_what_is_before_them_and_to_themselves() -> None:
    assert size_of([part(9, 1, 10)]) == StepSize(1, 1, 10, 10)
    assert size_of([part(0, 4, 10)]) == StepSize(4, 0, 1 + 2 + 3 + 4, 4)
    assert size_of([part(4, 3, 7)]) == StepSize(3, 1, 5 + 6 + 7, 7)
    assert size_of([part(9, 1, 10), part(0, 4, 10), part(4, 3, 7)]) == StepSize(8, 2, 38, 21)
    assert size_of([]) == StepSize(0, 0, 0, 0)


def test_weights_are_read_once_and_the_head_only_when_a_row_is_sampled() -> None:
    assert COST.of(StepSize(1, 1, 10, 10)) == StepCost(1000 + 300 + 100, 5000 + 700 + 8 * 11)
    assert COST.of(StepSize(4, 0, 10, 4)) == StepCost(4000 + 100, 5000 + 8 * 8)
    assert COST.of(StepSize(8, 2, 38, 21)) == StepCost(8000 + 600 + 380, 5000 + 700 + 8 * 29)


def test_a_bound_is_that_of_the_cores_used() -> None:
    roofline = Roofline(COST, PEAKS)
    size = StepSize(4, 2, 100, 20)
    cost = COST.of(size)
    machine_s = (4 * 2000 + 2 * 600) / 4e3 + 100 * 10 / 2e3
    assert roofline.bound(size, cost, 4).arithmetic_s == pytest.approx(machine_s)
    assert roofline.bound(size, cost, 1).arithmetic_s == pytest.approx(4 * machine_s)
    for cores, bytes_per_s in ((1, 400), (2, 800), (3, 900), (4, 900)):
        assert roofline.bound(size, cost, cores).memory_s == pytest.approx(cost.moved_bytes / bytes_per_s)


def test_a_model_s_cost_is_the_sum_of_its_matrices(tmp_path: Path) -> None:
    config = config_from_huggingface(write_tiny_model(tmp_path))  # 2 layers, 4 query heads of 16
    layout = KvLayout(KvDtype.BFLOAT16, layers=2, kv_heads=2, head_dim=16, block_tokens=32)
    matrices = [Matrix(100, 70, Arithmetic.INT8, 2), Matrix(10, 20, Arithmetic.BF16)]
    cost = model_cost(config, layout, matrices, head=Matrix(50, 90, Arithmetic.INT8, 2), vector_bytes=3)
    assert cost == ModelCost(
        row_operations=Operations(220, {Arithmetic.INT8: 400, Arithmetic.BF16: 20}),
        head_operations=Operations(100, {Arithmetic.INT8: 200}),
        attention_operations=Operations(4 * 64 * 2, {Arithmetic.BF16: 4 * 64 * 2}),
        layer_bytes=93,
        head_bytes=90,
        kv_token_bytes=2 * 2 * 2 * 16 * 2,
    )


@pytest.mark.parametrize("name", ["cpu-bandwidth", "cpu-bf16", "cpu-f32"])
def test_engines_know_what_their_steps_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    load_library()  # compiled into the cache that all runs share, before it is another one
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path / "cache"))
    model, chip_class = open_model(write_tiny_model(tmp_path / "tiny")), chip_class_named(name)
    layout = layout_for(model.config, chip_class)
    cost = load_engine(model, chip_class, private_memory(layout, 4), 1).model_cost
    size = 4 if name == "cpu-f32" else 2
    layer, head = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96, 256 * 64
    kind = Arithmetic.F32 if name == "cpu-f32" else Arithmetic.BF16
    assert cost.row_operations == Operations(2 * 2 * layer, {kind: 2 * 2 * layer})
    assert cost.head_operations == Operations(2 * head, {kind: 2 * head})
    norms = 2 * 2 * 64 * 4 + (64 * 4 if name == "cpu-bandwidth" else 0)  # torch's final norm is not among its layers
    assert cost.layer_bytes == 2 * layer * size + norms
    assert cost.head_bytes == head * size
    assert cost.kv_token_bytes == 2 * 2 * 2 * 16 * size


def test_totals_compare_only_steps_whose_bound_is_known() -> None:
    roofline, size = Roofline(COST, PEAKS), StepSize(1, 1, 10, 10)
    cost = COST.of(size)
    unknown = StepTotals().plus(MeasuredStep(9.0, cost, None))
    assert (unknown.flops_utilization, unknown.bandwidth_utilization) == (None, None)
    assert (unknown.operation_rate, unknown.memory_rate) == (1400 / 9, 5788 / 9)
    bound = roofline.bound(size, cost, 4)
    both = unknown.plus(MeasuredStep(16.0, cost, bound))
    assert (both.step_count, both.busy_s, both.operations, both.moved_bytes) == (2, 25.0, 2800, 2 * 5788)
    assert both.flops_utilization == pytest.approx(bound.arithmetic_s / 16)
    assert both.bandwidth_utilization == pytest.approx(bound.memory_s / 16)
    assert both.since(unknown) == StepTotals().plus(MeasuredStep(16.0, cost, bound))
    assert StepTotals().operation_rate is None
