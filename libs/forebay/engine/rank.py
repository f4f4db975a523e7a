"""Who comes before whom. Pure."""

from typing import Final, NamedTuple

OVERTAKEN_AT_MOST: Final = 64
"""One step of priority moves a sequence ahead of at most so many that came earlier, so that none starves."""


class Rank(NamedTuple):
    """A sequence's place in line; the lower comes first. No two of one line are equal."""

    turn: int  # arrival number, moved back by priority
    arrival: int

    @property
    def priority(self) -> int:
        """0 is the most urgent."""
        return (self.turn - self.arrival) // OVERTAKEN_AT_MOST


def rank_of(arrival: int, priority: int) -> Rank:
    """Args: arrival: a number that grows from one to the next; priority: 0 is the most urgent.

    Each step of priority lets OVERTAKEN_AT_MOST later ones go ahead, and no more.
    """
    return Rank(arrival + priority * OVERTAKEN_AT_MOST, arrival)
