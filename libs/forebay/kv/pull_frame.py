"""One piece of a block on its way between nodes: which bytes they are. Knows neither the bytes nor how they travel."""

from dataclasses import dataclass
from typing import Final

MAX_FRAME_BYTES: Final = 1024 * 1024
"""What we send. Longer frames are no faster: a megabyte is copied while it is still in the processor's cache."""
MAX_FOREIGN_FRAME_BYTES: Final = 4 * 1024 * 1024
"""What we accept."""
MAX_CREDIT_BYTES: Final = 2**30
"""Most that may be granted and unspent."""


@dataclass(frozen=True, slots=True)
class Frame:
    """`length_bytes` bytes of block `block_index`, from `offset_bytes` on.

    block_digest: of the whole block; in its last frame, and only there.
    """

    block_index: int
    offset_bytes: int
    length_bytes: int
    block_digest: bytes | None = None

    @property
    def end_bytes(self) -> int:
        """Where in the block the next frame begins."""
        return self.offset_bytes + self.length_bytes
