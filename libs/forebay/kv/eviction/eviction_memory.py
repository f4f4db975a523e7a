"""What is remembered of hashes whose blocks are gone: how often they were used, and one moment.

A table of 8-byte notes, each hash with one place in it: a newer note overwrites an older one, and a 16-bit fingerprint
tells another hash's note from one's own, except once in 65,536 times; then a block is taken for one used before, which
costs a bad choice, nothing else. Does not know what a moment means: policies count their own.
"""

from array import array
from typing import Final, NamedTuple

LEAST_NOTES: Final = 65_536
"""Notes of the smallest pool, 0.5 MB: a small pool has the most to gain from a long memory."""
NOTES_PER_BLOCK: Final = 2
MOST_USES: Final = 255
"""Greatest use count that a note holds; greater ones are cut."""

_USES_BITS: Final = 8
_MOMENT_BITS: Final = 40  # wraps after 10^12 moments: 3 years at 10,000 a second
_MOMENT_MASK: Final = (1 << _MOMENT_BITS) - 1
_FINGERPRINT_SHIFT: Final = _USES_BITS + _MOMENT_BITS


class Remembered(NamedTuple):
    """What was noted of a hash."""

    use_count: int
    moment: int


class EvictionMemory:
    """Notes on hashes, at most `NOTES_PER_BLOCK` for each block of the pool, or `LEAST_NOTES`."""

    def __init__(self, capacity: int) -> None:
        self._size = max(LEAST_NOTES, NOTES_PER_BLOCK * capacity)
        self._notes = array("Q", [0]) * self._size  # 0: no note, since use counts begin at 1

    def remember(self, block_hash: bytes, use_count: int, moment: int) -> None:
        """Notes 1..MOST_USES uses and a moment of this hash."""
        place, fingerprint = self._place(block_hash)
        uses = min(use_count, MOST_USES)
        note = (moment & _MOMENT_MASK) << _USES_BITS | uses
        self._notes[place] = fingerprint << _FINGERPRINT_SHIFT | note

    def recall(self, block_hash: bytes) -> Remembered | None:
        """What was noted of this hash, unless another has taken its place since."""
        place, fingerprint = self._place(block_hash)
        note = self._notes[place]
        uses = note & MOST_USES
        if uses == 0 or note >> _FINGERPRINT_SHIFT != fingerprint:
            return None
        return Remembered(uses, note >> _USES_BITS & _MOMENT_MASK)

    def _place(self, block_hash: bytes) -> tuple[int, int]:
        number = int.from_bytes(block_hash[-10:], "big")
        return (number >> 16) % self._size, number & 0xFFFF
