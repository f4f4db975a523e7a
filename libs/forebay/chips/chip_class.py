"""The chip classes we know: device, precision and threads of each.

Knows names and settings only: no torch, no device is touched, nothing is measured here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from forebay.errors import StartError


class NumberFormat(Enum):
    """Format of weights, activations or KV. The values are those of torch and of `KvDtype`."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


@dataclass(frozen=True, slots=True)
class ChipClass:
    """A kind of device and how we run it. Workers of one class produce the same bits."""

    name: str
    device: str  # torch's device type
    weight_dtype: NumberFormat  # of matrices and activations; norm weights and the residual stream are always float32
    kv_dtype: NumberFormat
    threads: int = 1  # cores one step may use; changes the speed, never the bits


BUILT_IN: Mapping[str, ChipClass] = MappingProxyType(
    {
        chip_class.name: chip_class
        for chip_class in (
            ChipClass("cpu-bf16", "cpu", NumberFormat.BFLOAT16, NumberFormat.BFLOAT16),
            ChipClass("cpu-f32", "cpu", NumberFormat.FLOAT32, NumberFormat.FLOAT32),
        )
    }
)
"""Chip classes by name. `cpu-bf16` is the default of every service, `cpu-f32` the reference of the tests."""

DEFAULT_NAME = "cpu-bf16"


def chip_class_named(name: str) -> ChipClass:
    """The built-in chip class of that name.

    Raises:
        StartError: there is none; the message lists those that exist.
    """
    try:
        return BUILT_IN[name]
    except KeyError:
        known = ", ".join(sorted(BUILT_IN))
        raise StartError(f"unknown chip class {name!r}; choose one of: {known}", field="chip_class") from None
