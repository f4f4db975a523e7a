"""Chip classes by name."""

import pytest

from forebay.chips import NumberFormat, chip_class_named
from forebay.chips.chip_class import BUILT_IN, DEFAULT_NAME
from forebay.errors import StartError
from forebay.kv.layout import KvDtype


def test_the_default_class_computes_in_bfloat16_on_the_cpu():
    chip_class = chip_class_named(DEFAULT_NAME)

    assert (chip_class.device, chip_class.weight_dtype, chip_class.kv_dtype) == (
        "cpu",
        NumberFormat.BFLOAT16,
        NumberFormat.BFLOAT16,
    )


def test_an_unknown_class_is_refused_with_the_names_that_exist():
    with pytest.raises(StartError) as refusal:
        chip_class_named("abacus")

    assert "'abacus'" in refusal.value.message
    assert all(name in refusal.value.message for name in BUILT_IN)


@pytest.mark.parametrize("number_format", NumberFormat)
def test_every_number_format_is_a_kv_dtype_of_the_same_name(number_format):
    assert KvDtype(number_format.value).name == number_format.name
