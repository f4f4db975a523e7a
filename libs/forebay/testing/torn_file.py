"""A file in memory that can be killed or cut from power in the middle of its writes. A BlockFile of the disk tier."""

import errno
import random
from typing import Final

SECTOR_BYTES: Final = 512
"""What a disk writes whole or not at all."""


class ProcessKilled(BaseException):  # no error: nothing in the killed process may catch it
    """The writing process is no more."""


class TornFile:
    """Writes reach the content at once and survive a kill; all since the last power cut may be lost by the next."""

    def __init__(self, size_bytes: int) -> None:
        self.content = bytearray(size_bytes)
        self.error: OSError | None = None  # raised by every later call
        self._on_disk = bytearray(size_bytes)
        self._unsynced: list[tuple[int, bytes]] = []
        self._left_bytes: int | None = None

    def kill_within(self, write_bytes: int) -> None:
        """The process dies as soon as it has written so many more bytes."""
        self._left_bytes = write_bytes

    def restart(self) -> None:
        """Another process opens the file."""
        self._left_bytes = None

    def cut_power(self, source: random.Random) -> None:
        """Of each sector some writes reached the disk, and others did not."""
        for offset, data in self._unsynced:
            for begin in range(offset - offset % SECTOR_BYTES, offset + len(data), SECTOR_BYTES):
                first, end = max(begin, offset), min(begin + SECTOR_BYTES, offset + len(data))
                if source.random() < 0.5:
                    self._on_disk[first:end] = data[first - offset : end - offset]
        self._unsynced.clear()
        self.content[:] = self._on_disk

    def flip(self, bit: int) -> None:
        """One bit of the content changes by itself."""
        self.content[bit // 8] ^= 1 << bit % 8

    def read_at(self, offset: int, into: memoryview) -> None:
        """As BlockFile."""
        self._raise_error()
        if offset + len(into) > len(self.content):
            raise OSError(errno.EIO, "the file ends")
        into[:] = self.content[offset : offset + len(into)]

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """As BlockFile."""
        self._raise_error()
        kept = bytes(data)
        if self._left_bytes is not None:
            kept = kept[: self._left_bytes]
            self._left_bytes -= len(kept)
        self.content[offset : offset + len(kept)] = kept
        self._unsynced.append((offset, kept))
        if len(kept) < len(data):
            raise ProcessKilled

    def close(self) -> None:
        """As BlockFile."""

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error
