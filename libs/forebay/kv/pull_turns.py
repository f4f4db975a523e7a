"""Whose turn it is to send: pulls that share a way out get equal bytes while they have something to send.

Pure. Whoever has had the least since it came goes next. One that comes, or comes back, begins at the level of those
that are waiting, so that it neither makes up for the past nor waits for it.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

Pull = TypeVar("Pull", bound=Hashable)


class PullTurns(Generic[Pull]):
    """Invariant: of two pulls that wait all the time, neither is ahead by more than the two largest pieces sent."""

    def __init__(self) -> None:
        self._served_bytes: dict[Pull, int] = {}  # of those waiting, in order of coming
        self._level_bytes = 0

    def wait(self, pull: Pull) -> None:
        """The pull has something to send. Harmless when it waits already."""
        self._served_bytes.setdefault(pull, self._level_bytes)

    def leave(self, pull: Pull) -> None:
        """The pull has nothing to send now."""
        self._served_bytes.pop(pull, None)

    def next(self) -> Pull | None:
        """Whose turn it is; None: nobody waits."""
        return min(self._served_bytes, key=self._served_bytes.__getitem__, default=None)

    def sent(self, pull: Pull, byte_count: int) -> None:
        """The pull, which was next, has sent so much."""
        self._level_bytes = self._served_bytes[pull]
        # Behind the others that have had as much.
        self._served_bytes[pull] = self._served_bytes.pop(pull) + byte_count
