"""The sending side of one pull: what to send next, given what is sealed and how much the receiver takes.

Pure. Knows neither memory nor connections, nor why a block is not sealed yet.
"""

from collections import deque
from dataclasses import dataclass

from forebay.errors import InvalidFieldError
from forebay.kv.pull_frame import MAX_CREDIT_BYTES, MAX_FRAME_BYTES, Frame


@dataclass(frozen=True, slots=True)
class PullShape:
    """What is pulled: `block_count` blocks of equal size, from `first_block_index` on."""

    block_count: int
    block_bytes: int
    first_block_index: int = 0


class PullSource:
    """Blocks go out whole, in order, those asked for again as soon as the one under way is out.

    Invariant: never more payload bytes sent than granted.
    """

    def __init__(self, shape: PullShape, credit_bytes: int) -> None:
        """Errors: InvalidFieldError when the credit is out of range."""
        self._shape = shape
        self._digests: list[bytes] = []  # of the sealed blocks, from first_block_index on
        self._credit_bytes = 0
        self._due: deque[int] = deque()
        self._repeated: set[int] = set()
        self._next_unsent = shape.first_block_index
        self._current: int | None = None
        self._offset_bytes = 0
        self._frame_bytes = 1
        self.grant(credit_bytes)

    @property
    def first_unsealed(self) -> int | None:
        """The block that has to be sealed next; None when all are."""
        index = self._shape.first_block_index + len(self._digests)
        return index if index < self._shape.block_count else None

    @property
    def sent_block_count(self) -> int:
        """Blocks sent whole, those sent again not counted twice."""
        return self._next_unsent - self._shape.first_block_index

    @property
    def is_idle(self) -> bool:
        """Whether nothing is left to send until another block is sealed or asked for again, whatever the credit."""
        are_sealed_sent = self.sent_block_count == len(self._digests)
        return self._current is None and not self._due and are_sealed_sent

    def seal(self, digest: bytes) -> None:
        """The block `first_unsealed` may be sent; its bytes have this digest."""
        assert self.first_unsealed is not None
        self._digests.append(digest)

    def grant(self, credit_bytes: int) -> None:
        """The receiver takes so many bytes more. Errors: InvalidFieldError when that is nothing, or too much in all."""
        if not 1 <= credit_bytes <= MAX_CREDIT_BYTES - self._credit_bytes:
            raise InvalidFieldError(
                f"credit must be at least 1 byte, and at most {MAX_CREDIT_BYTES} bytes may be unspent",
                field="credit_bytes",
            )
        self._credit_bytes += credit_bytes
        # With half of the most that was ever unspent, and less than a quarter of it held back by the receiver, whatever
        # it has not granted yet never keeps the next frame waiting for ever. Nor does little credit at first, and much
        # later, have us send byte by byte.
        self._frame_bytes = max(self._frame_bytes, min(MAX_FRAME_BYTES, self._credit_bytes // 2))

    def repeat(self, block_index: int) -> None:
        """The receiver wants a block again. Errors: InvalidFieldError when it has not had it, or had it twice."""
        if not self._shape.first_block_index <= block_index < self._next_unsent:
            raise InvalidFieldError(
                f"block {block_index} has not been sent, so it cannot be repeated", field="repeat_block_indexes"
            )
        if block_index in self._repeated:
            raise InvalidFieldError(f"block {block_index} was repeated already", field="repeat_block_indexes")
        self._repeated.add(block_index)
        self._due.append(block_index)

    def next_frame(self) -> Frame | None:
        """The frame to send now, which spends its credit; None: nothing may be sent until something changes."""
        if self._current is None:
            self._current = self._next_block()
        if self._current is None:
            return None
        length_bytes = min(self._frame_bytes, self._shape.block_bytes - self._offset_bytes)
        if length_bytes > self._credit_bytes:
            return None
        return self._take(self._current, length_bytes)

    def _take(self, index: int, length_bytes: int) -> Frame:
        offset_bytes = self._offset_bytes
        self._credit_bytes -= length_bytes
        self._offset_bytes += length_bytes
        if self._offset_bytes < self._shape.block_bytes:
            return Frame(index, offset_bytes, length_bytes)
        self._current, self._offset_bytes = None, 0
        self._next_unsent = max(self._next_unsent, index + 1)
        return Frame(index, offset_bytes, length_bytes, self._digests[index - self._shape.first_block_index])

    def _next_block(self) -> int | None:
        if self._due:
            return self._due.popleft()
        is_sealed = self._next_unsent < self._shape.first_block_index + len(self._digests)
        return self._next_unsent if is_sealed else None
