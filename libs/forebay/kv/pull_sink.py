"""The receiving side of one pull: where frames belong, what has arrived, what to grant and to ask for again.

Pure. Outlives the connections over which the blocks come: each begins a session. Knows neither memory nor sockets.
"""

from collections.abc import Callable, Set
from dataclasses import dataclass

from forebay.errors import BadFrameError
from forebay.kv.pull_frame import MAX_FOREIGN_FRAME_BYTES, Frame


@dataclass(frozen=True, slots=True)
class Settled:
    """What follows from a frame that was read.

    grant_bytes: to be granted to the source now; 0: not yet.
    arrived: the block that is whole and right now, whose memory is not written again.
    repeat: the block to ask for again.
    """

    grant_bytes: int = 0
    arrived: int | None = None
    repeat: int | None = None


class PullSink:
    """Blocks 0 … block_count - 1, each arriving once or failing.

    Invariants: a block that has arrived is never written again; the source never has more than `window_bytes` of
    credit.
    """

    def __init__(self, block_count: int, block_bytes: int, window_bytes: int) -> None:
        self.window_bytes = window_bytes
        self.block_count = block_count
        self.read_bytes = 0  # of all sessions, whatever became of them
        self._block_bytes = block_bytes
        self._arrived: set[int] = set()
        self._failed: set[int] = set()
        self._repeated: set[int] = set()
        self._whole_bytes: dict[int, int] = {}  # of blocks begun: bytes there, from the front without a hole
        self._credit_bytes = 0
        self._ungranted_bytes = 0

    @property
    def arrived(self) -> Set[int]:
        """Blocks that are here, verified."""
        return self._arrived

    @property
    def failed(self) -> Set[int]:
        """Blocks whose bytes were wrong twice."""
        return self._failed

    @property
    def first_missing(self) -> int | None:
        """The first block that has neither arrived nor failed; None when there is none."""
        settled = self._arrived | self._failed
        return next((index for index in range(self.block_count) if index not in settled), None)

    @property
    def is_settled(self) -> bool:
        """Whether every block has arrived or failed."""
        return len(self._arrived) + len(self._failed) == self.block_count

    def begin_session(self) -> None:
        """A new connection, with `window_bytes` of credit: what was under way on the last one is forgotten."""
        self._whole_bytes.clear()
        self._repeated = set(self._failed)
        self._credit_bytes, self._ungranted_bytes = self.window_bytes, 0

    def place(self, frame: Frame) -> bool:
        """Whether the frame's bytes are to be written to their place; otherwise they are read and thrown away.

        Errors: BadFrameError when the frame cannot be part of this pull, or was not granted.
        """
        self._check(frame)
        self._credit_bytes -= frame.length_bytes
        if frame.block_index in self._arrived or frame.block_index in self._failed:
            return False
        if frame.offset_bytes == 0:
            self._whole_bytes[frame.block_index] = 0
        return self._whole_bytes.get(frame.block_index) == frame.offset_bytes

    def settle(self, frame: Frame, is_written: bool, digest_of: Callable[[int], bytes]) -> Settled:
        """The frame that `place` judged has been read; `digest_of` computes the digest of a block's memory."""
        index = frame.block_index
        self.read_bytes += frame.length_bytes
        if is_written:
            self._whole_bytes[index] = frame.end_bytes
        grant_bytes = self._grant(frame.length_bytes)
        if frame.block_digest is None or index in self._arrived or index in self._failed:
            return Settled(grant_bytes)
        is_whole = self._whole_bytes.pop(index, 0) == self._block_bytes and is_written
        if is_whole and digest_of(index) == frame.block_digest:
            self._arrived.add(index)
            return Settled(grant_bytes, arrived=index)
        if index in self._repeated:
            self._failed.add(index)
            return Settled(grant_bytes)
        self._repeated.add(index)
        return Settled(grant_bytes, repeat=index)

    def _grant(self, read_bytes: int) -> int:
        self._ungranted_bytes += read_bytes
        if self._ungranted_bytes < max(1, self.window_bytes // 4):
            return 0
        granted, self._ungranted_bytes = self._ungranted_bytes, 0
        self._credit_bytes += granted
        return granted

    def _check(self, frame: Frame) -> None:
        if not 0 <= frame.block_index < self.block_count:
            raise BadFrameError(f"a frame is of block {frame.block_index} of {self.block_count}")
        if frame.length_bytes < 1 or frame.end_bytes > self._block_bytes:
            raise BadFrameError(
                f"a frame has bytes {frame.offset_bytes} to {frame.end_bytes} of a block of {self._block_bytes}"
            )
        if frame.length_bytes > min(self._credit_bytes, MAX_FOREIGN_FRAME_BYTES):
            raise BadFrameError(f"a frame has {frame.length_bytes} bytes, {self._credit_bytes} are granted")
        if (frame.block_digest is not None) != (frame.end_bytes == self._block_bytes):
            raise BadFrameError("a block's digest comes in its last frame, and only there")
