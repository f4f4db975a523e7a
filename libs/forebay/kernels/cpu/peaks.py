"""Measures on the spot what this machine can do at most."""

import ctypes
from collections.abc import Callable

import numpy as np

from forebay.kernels.cpu.library import NativeLibrary
from forebay.kernels.peaks import Arithmetic, Peaks

_ARITHMETIC_S = 0.05
_READ_BYTES = 256 << 20
_READINGS = 3


class DisturbedError(Exception):
    """Somebody else began to compute; what was measured so far is given up."""


def measure_peaks(library: NativeLibrary, threads: int, is_undisturbed: Callable[[], bool] = lambda: True) -> Peaks:
    """Takes some 0.4 s and 256 MiB. The best of three readings each: another process can only make them lower.

    Args:
        is_undisturbed: asked before and after each reading, which takes some 20 ms.

    Raises:
        DisturbedError: it said no.
    """
    functions = library.functions
    functions.forebay_arithmetic_peak.restype = ctypes.c_double
    functions.forebay_read_peak.restype = ctypes.c_double
    seconds = ctypes.c_double(_ARITHMETIC_S / _READINGS)

    def best(function: Callable[..., float], *arguments: object) -> float:
        readings = []
        for _ in range(_READINGS):
            _check(is_undisturbed)
            readings.append(float(function(*arguments)))
        _check(is_undisturbed)
        return max(readings)

    operations = {kind: best(functions.forebay_arithmetic_peak, kind, threads, seconds) for kind in Arithmetic}
    memory = np.ones(_READ_BYTES, np.uint8)
    place = ctypes.c_void_p(memory.ctypes.data), ctypes.c_int64(memory.nbytes)
    read, single_read = (best(functions.forebay_read_peak, *place, count) for count in (threads, 1))
    return Peaks(threads, operations, read, single_read)


def _check(is_undisturbed: Callable[[], bool]) -> None:
    if not is_undisturbed():
        raise DisturbedError
