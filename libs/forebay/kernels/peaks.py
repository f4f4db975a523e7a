"""What a machine can do at most: the bounds that a step's time is compared with. Pure; `cpu/peaks.py` measures them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum


class Arithmetic(IntEnum):
    """Kinds of multiplication and addition; the value is the native library's."""

    F32 = 0
    BF16 = 1
    INT8 = 2


@dataclass(frozen=True, slots=True)
class Peaks:
    """Of so many threads together, each on a core of its own; `single_read_bytes_per_s` of one thread alone."""

    threads: int
    operations_per_s: Mapping[Arithmetic, float]
    read_bytes_per_s: float
    single_read_bytes_per_s: float
