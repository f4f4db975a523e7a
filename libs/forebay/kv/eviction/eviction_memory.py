"""What is remembered of hashes whose blocks are gone: how often they were used, and one moment.

A table of 8-byte notes, each hash with one place in it: a newer note overwrites an older one, and a 16-bit fingerprint
tells another hash's note from one's own, except once in 65,536 times; then a block is taken for one used before, which
costs a bad choice, nothing else. Does not know what a moment means: policies count their own.
"""

from array import array
from struct import Struct
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
_FINGERPRINT_MASK: Final = (1 << 16) - 1
_halves = Struct(">QQ").unpack  # of a hash


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
        high, low = _halves(block_hash)
        uses = min(MOST_USES, use_count)
        note = (high & _FINGERPRINT_MASK) << _MOMENT_BITS | moment & _MOMENT_MASK
        self._notes[low % self._size] = note << _USES_BITS | uses

    def recall(self, block_hash: bytes) -> Remembered | None:
        """What was noted of this hash, unless another has taken its place since."""
        high, low = _halves(block_hash)
        note = self._notes[low % self._size]
        if note == 0 or note >> _FINGERPRINT_SHIFT != high & _FINGERPRINT_MASK:
            return None
        return Remembered(note & MOST_USES, note >> _USES_BITS & _MOMENT_MASK)
