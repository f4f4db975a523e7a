"""What this machine can do at most, measured on the spot: the bounds that a step's time is compared with."""

import ctypes
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from forebay.kernels.cpu.library import NativeLibrary

_ARITHMETIC_S = 0.05
_READ_BYTES = 256 << 20


class Arithmetic(IntEnum):
    """Kinds of multiplication and addition; the value is the library's."""

    F32 = 0
    BF16 = 1
    INT8 = 2


@dataclass(frozen=True, slots=True)
class Peaks:
    """Of so many threads together."""

    threads: int
    operations_per_s: dict[Arithmetic, float]
    read_bytes_per_s: float


def measure_peaks(library: NativeLibrary, threads: int) -> Peaks:
    """Takes some 0.3 s and 256 MiB. The best of three readings each: another process can only make them lower."""
    functions = library.functions
    functions.forebay_arithmetic_peak.restype = ctypes.c_double
    functions.forebay_read_peak.restype = ctypes.c_double
    operations = {
        kind: max(
            float(functions.forebay_arithmetic_peak(kind, threads, ctypes.c_double(_ARITHMETIC_S / 3)))
            for _ in range(3)
        )
        for kind in Arithmetic
    }
    memory = np.ones(_READ_BYTES, np.uint8)
    address, size = ctypes.c_void_p(memory.ctypes.data), ctypes.c_int64(memory.nbytes)
    read = max(float(functions.forebay_read_peak(address, size, threads)) for _ in range(3))
    return Peaks(threads, operations, read)
