"""Reads and writes at offsets, whole or not at all to the caller's eye. Knows nothing of what lies where.

Blocking, and safe from many threads: nothing here moves a file position. The system calls let other threads run.
"""

import errno
import os
from typing import Protocol


class BlockFile(Protocol):
    """A file of fixed size. Every method may raise OSError."""

    def read_at(self, offset: int, into: memoryview) -> None:
        """Fills `into`. A file that ends before is an OSError."""
        ...

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Writes all of `data`; when this process is killed meanwhile, a part of it may be written."""
        ...

    def close(self) -> None:
        """Ends its use; also a lock on it."""
        ...


class OpenFile:
    """A BlockFile over an open file descriptor, which it owns."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def read_at(self, offset: int, into: memoryview) -> None:
        """As BlockFile."""
        done_bytes = 0
        while done_bytes < len(into):
            count = os.preadv(self._descriptor, [into[done_bytes:]], offset + done_bytes)
            if count == 0:
                raise OSError(errno.EIO, f"the file ends before byte {offset + len(into)}: it was truncated")
            done_bytes += count

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """As BlockFile."""
        view, done_bytes = memoryview(data), 0
        while done_bytes < len(view):
            done_bytes += os.pwrite(self._descriptor, view[done_bytes:], offset + done_bytes)

    def close(self) -> None:
        """As BlockFile."""
        os.close(self._descriptor)
