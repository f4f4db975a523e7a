"""Who is next at the disk: flows by turns, and one request at a time per slot. Pure: starts and awaits nothing."""

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar


@dataclass(frozen=True, eq=False)
class Turn:
    """One request. flow: whose it is; a flow with many requests makes one with few wait for one of them only."""

    slot: int
    flow: Hashable


T = TypeVar("T", bound=Turn)


class Turns(Generic[T]):
    """Requests that wait or are under way.

    Requests for one slot go in the order in which they were added, whatever their flows: the next of them waits in no
    line before the one ahead has ended.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, deque[T]] = OrderedDict()  # flow → those who may start, none empty
        self._slots: dict[int, deque[T]] = {}  # slot → all who want it, none empty; the first waits in line or has it

    def add(self, turn: T) -> None:
        """The request waits from now on."""
        wanting = self._slots.setdefault(turn.slot, deque())
        wanting.append(turn)
        if len(wanting) == 1:
            self._line_up(turn)

    def next(self) -> T | None:
        """Whoever's turn it is; it has its slot until `end`."""
        if not self._lines:
            return None
        flow, line = self._lines.popitem(last=False)
        turn = line.popleft()
        if line:
            self._lines[flow] = line
        return turn

    def end(self, turn: T) -> None:
        """The request gives its slot to the next who wants it."""
        wanting = self._slots[turn.slot]
        wanting.remove(turn)
        if not wanting:
            del self._slots[turn.slot]
        else:
            self._line_up(wanting[0])

    def withdraw(self, turn: T) -> bool:
        """Takes a request back unless it has its slot already; returns whether it did."""
        wanting = self._slots[turn.slot]
        if wanting[0] is not turn:
            wanting.remove(turn)
            return True
        line = self._lines.get(turn.flow)
        if line is None or turn not in line:
            return False
        line.remove(turn)
        if not line:
            del self._lines[turn.flow]
        self.end(turn)
        return True

    def _line_up(self, turn: T) -> None:
        self._lines.setdefault(turn.flow, deque()).append(turn)
