"""This process's heap: freed memory is kept for the next use. Knows the C library's allocator."""

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_LARGEST_IN_HEAP_BYTES: Final = 32 * 1024 * 1024  # the most that glibc allows
_KEPT_BYTES: Final = 256 * 1024 * 1024
_GROWTH_BYTES: Final = 64 * 1024 * 1024


def keep_freed_memory() -> bool:
    """To be called before threads start. Returns whether the C library can do it; harmless where it cannot.

    By default glibc gives memory of a megabyte back to the kernel as soon as it is free, and the next megabyte is of
    fresh pages, each faulted in and zeroed: for messages of that size that costs more than copying them. Up to
    256 MiB that are free stay with the process.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    settings = {
        _M_MMAP_THRESHOLD: _LARGEST_IN_HEAP_BYTES,
        _M_TRIM_THRESHOLD: _KEPT_BYTES,
        _M_TOP_PAD: _GROWTH_BYTES,
        _M_ARENA_MAX: 1,  # what one thread frees serves the others
    }
    answers = [mallopt(name, value) for name, value in settings.items()]
    return 0 not in answers
