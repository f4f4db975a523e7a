"""Collects what one operation on a node's blocks makes others do, in order."""

from itertools import groupby
from operator import itemgetter
from typing import Final

from forebay.kv.effects import (
    BlockRecord,
    CopyBlock,
    Effects,
    IndexEvent,
    Moved,
    ReadSlot,
    Removed,
    Stored,
    WriteSlot,
)
from forebay.kv.tier import Tier

MOST_HASHES: Final = 4096
"""Of one event, so that a restored or flushed disk of any size can be told in messages of bearable size."""


class EffectLog:
    """Empty at the start of an operation."""

    def __init__(self) -> None:
        self.copies: list[CopyBlock] = []
        self.writes: list[WriteSlot] = []
        self.reads: list[ReadSlot] = []
        self.records: list[BlockRecord] = []
        self._changes: list[tuple[Tier | None, Tier | None, bytes]] = []

    def change(self, block_hash: bytes, before: Tier | None, after: Tier | None) -> None:
        """The nearest tier of a block was `before` and is `after` now; None: it is not held."""
        if before is not after:
            self._changes.append((before, after, block_hash))

    @property
    def events(self) -> list[IndexEvent]:
        """The changes, neighbours of one kind together, at most MOST_HASHES of them."""
        return [
            _event(before, after, hashes[start : start + MOST_HASHES])
            for (before, after), changes in groupby(self._changes, key=itemgetter(0, 1))
            for hashes in (tuple(change[2] for change in changes),)
            for start in range(0, len(hashes), MOST_HASHES)
        ]

    def effects(self) -> Effects:
        """All that was collected."""
        return Effects(
            copies=tuple(self.copies),
            writes=tuple(self.writes),
            reads=tuple(self.reads),
            records=tuple(self.records),
            events=tuple(self.events) if self._changes else (),
        )


def _event(before: Tier | None, after: Tier | None, hashes: tuple[bytes, ...]) -> IndexEvent:
    if before is None:
        assert after is not None
        return Stored(after, hashes)
    return Removed(before, hashes) if after is None else Moved(before, after, hashes)
