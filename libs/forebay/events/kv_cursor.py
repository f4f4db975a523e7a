"""Where a reader stands in one node's numbered KV events: what to apply, and when only a dump helps. Pure.

Knows incarnations and numbers, not what an event means nor how batches and dumps arrive.

Invariant: while following, the events applied since the last dump are exactly those numbered
dump.last_event_number + 1 .. next_number - 1, each once and in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

E = TypeVar("E")

MAX_HELD_BATCHES: Final = 1024


@dataclass(frozen=True, slots=True)
class Batch(Generic[E]):
    """Consecutive events of a node; none: a heartbeat that carries the number the next event will have."""

    incarnation: int
    first_number: int
    events: Sequence[E] = ()

    @property
    def end_number(self) -> int:
        """Number after the last event."""
        return self.first_number + len(self.events)


@dataclass(frozen=True, slots=True)
class Apply(Generic[E]):
    """Effect: apply these events, in order."""

    events: Sequence[E]


@dataclass(frozen=True, slots=True)
class RequestDump:
    """Effect: ask the node for its whole index, then call `on_dump`. At most one is under way."""


class KvCursor(Generic[E]):
    """The state of one reader of one node."""

    def __init__(self) -> None:
        self._incarnation: int | None = None  # None: a dump is under way or has never been taken
        self._next_number = 1
        self._is_dump_requested = False
        self._held: list[Batch[E]] = []  # arrived while a dump is under way

    @property
    def is_following(self) -> bool:
        """Whether the index is complete up to the last batch seen."""
        return self._incarnation is not None

    def on_batch(self, batch: Batch[E]) -> Apply[E] | RequestDump | None:
        """A batch arrived, in any order, perhaps twice, perhaps with others lost."""
        if self._incarnation is None:
            self._hold(batch)
            return self._request_dump()
        if batch.incarnation != self._incarnation or batch.first_number > self._next_number:
            self._incarnation = None
            self._hold(batch)
            return self._request_dump()
        return self._continue_with(batch)

    def on_suspicion(self) -> RequestDump | None:
        """Batches may have been lost: NATS was away, or this reader too slow."""
        self._incarnation = None
        return self._request_dump()

    def on_dump(self, incarnation: int, last_event_number: int) -> list[Apply[E] | RequestDump]:
        """The index was replaced by a dump that contains events up to `last_event_number`."""
        self._is_dump_requested = False
        self._incarnation = incarnation
        self._next_number = last_event_number + 1
        held, self._held = self._held, []
        effects: list[Apply[E] | RequestDump] = []
        # Batches of another incarnation are older than the dump, or the next heartbeat shows that they are newer.
        for batch in sorted((b for b in held if b.incarnation == incarnation), key=lambda b: b.first_number):
            effect = self.on_batch(batch)
            if effect is not None:
                effects.append(effect)
        return effects

    def _continue_with(self, batch: Batch[E]) -> Apply[E] | None:
        if batch.end_number <= self._next_number:
            return None
        fresh = batch.events[self._next_number - batch.first_number :]
        self._next_number = batch.end_number
        return Apply(fresh)

    def _hold(self, batch: Batch[E]) -> None:
        if len(self._held) >= MAX_HELD_BATCHES:
            self._held.clear()  # the hole shows as a gap after the dump
        self._held.append(batch)

    def _request_dump(self) -> RequestDump | None:
        if self._is_dump_requested:
            return None
        self._is_dump_requested = True
        return RequestDump()
