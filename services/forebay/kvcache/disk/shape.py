"""Where everything lies in a block file: a header, one record per slot, then the slots. Knows no contents.

0            header, one page, whose last 16 bytes say what is forgotten
4,096        records, 48 bytes per slot, padded to a page
data_offset  slots, `stride_bytes` each
"""

from dataclasses import dataclass
from typing import Final, Self

PAGE_BYTES: Final = 4096
"""Slots begin and end at multiples of this, as direct I/O wants it, so that no page is shared by two blocks."""
HEADER_BYTES: Final = PAGE_BYTES
FORGOTTEN_BYTES: Final = 16
FORGOTTEN_OFFSET: Final = HEADER_BYTES - FORGOTTEN_BYTES
RECORD_BYTES: Final = 48


@dataclass(frozen=True, slots=True)
class FileShape:
    """A file with `block_count` slots for blocks of `block_bytes`."""

    block_bytes: int
    block_count: int

    @classmethod
    def within(cls, size_bytes: int, block_bytes: int) -> Self:
        """As many slots as a file of `size_bytes` has room for; perhaps none."""
        per_slot_bytes = _whole_pages(block_bytes) + RECORD_BYTES
        # The records' last page may be filled in part only.
        return cls(block_bytes, max(0, size_bytes - HEADER_BYTES - PAGE_BYTES) // per_slot_bytes)

    @property
    def stride_bytes(self) -> int:
        """From one slot to the next."""
        return _whole_pages(self.block_bytes)

    @property
    def data_offset(self) -> int:
        """Where the first slot begins."""
        return HEADER_BYTES + _whole_pages(self.block_count * RECORD_BYTES)

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return self.data_offset + self.block_count * self.stride_bytes

    def record_offset(self, slot: int) -> int:
        """Where the slot's record begins."""
        assert 0 <= slot < self.block_count
        return HEADER_BYTES + slot * RECORD_BYTES

    def block_offset(self, slot: int) -> int:
        """Where the slot's block begins."""
        assert 0 <= slot < self.block_count
        return self.data_offset + slot * self.stride_bytes


def _whole_pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
