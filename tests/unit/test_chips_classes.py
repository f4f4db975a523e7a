"""Chip classes by name."""

from dataclasses import replace

import pytest

from forebay.chips import KernelSet, chip_class_named
from forebay.chips.chip_class import BUILT_IN, DECODE_DEFAULT, PREFILL_DEFAULT, WITHOUT_COMPILER
from forebay.chips.kv_layout import layout_for
from forebay.errors import StartError
from forebay.kv.layout import KvDtype
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model


def test_the_defaults_of_prefill_and_decode_compute_alike_and_share_blocks():
    config = open_model(resolve_model(None)).config
    prefill, decode = chip_class_named(PREFILL_DEFAULT), chip_class_named(DECODE_DEFAULT)

    assert prefill.kernels is decode.kernels is KernelSet.NATIVE
    assert (prefill.device, prefill.weight_dtype) == (decode.device, decode.weight_dtype)
    assert layout_for(config, prefill) == layout_for(config, decode)


def test_what_is_taken_without_a_compiler_needs_none():
    assert chip_class_named(WITHOUT_COMPILER).kernels is KernelSet.TORCH


def test_an_unknown_class_is_refused_with_the_names_that_exist():
    with pytest.raises(StartError) as refusal:
        chip_class_named("abacus")

    assert "'abacus'" in refusal.value.message
    assert all(name in refusal.value.message for name in BUILT_IN)


def test_arithmetic_tells_apart_what_computes_other_bits() -> None:
    by_arithmetic: dict[str, set[str]] = {}
    for name, chip_class in BUILT_IN.items():
        by_arithmetic.setdefault(chip_class.arithmetic, set()).add(name)
    assert by_arithmetic == {
        "native-bfloat16-a16": {"cpu-compute", "cpu-bandwidth"},
        "native-bfloat16-a8": {"cpu-compute-a8", "cpu-bandwidth-a8"},
        "native-int8-a16": {"cpu-compute-w8", "cpu-bandwidth-w8"},
        "torch-bfloat16": {"cpu-bf16"},
        "torch-float32": {"cpu-f32", "cpu-f32-kv8"},
        "torch-float32-tp2": {"cpu-f32-tp2"},
        "torch-float32-tp3": {"cpu-f32-tp3"},
    }


def test_the_layout_of_a_class_with_8_bit_kv_has_scales_and_blocks_of_16():
    layout = layout_for(open_model(resolve_model(None)).config, chip_class_named("cpu-f32-kv8"))

    assert (layout.dtype, layout.block_tokens) == (KvDtype.INT8, 16)
    assert layout.scale_offset_bytes is not None


def test_ranks_cut_the_heads_and_are_no_more_than_those():
    config = open_model(resolve_model(None)).config

    assert [part.head_range for part in layout_for(config, chip_class_named("cpu-f32-tp3")).parts] == [
        range(1),
        range(1, 2),
        range(2, 3),
    ]
    with pytest.raises(StartError, match="among 3 ranks; this one has 2"):
        layout_for(replace(config, kv_heads=2), chip_class_named("cpu-f32-tp3"))
