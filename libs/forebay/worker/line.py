"""Who asks next for what is short: the first by rank. Knows nothing of what that is. Used on one event loop."""

import asyncio
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter

from forebay.engine.rank import Rank


class Line:
    """Invariant: the first that stands here has its turn, and no other."""

    def __init__(self) -> None:
        self._standing: list[tuple[Rank, asyncio.Event]] = []  # by rank

    @property
    def is_empty(self) -> bool:
        """Whether nobody stands here."""
        return not self._standing

    @property
    def first(self) -> Rank | None:
        """Who has its turn."""
        return self._standing[0][0] if self._standing else None

    def is_first(self, rank: Rank) -> bool:
        """Whether nobody stands here who comes before."""
        return not self._standing or rank <= self._standing[0][0]

    def is_standing(self, rank: Rank) -> bool:
        """Whether it stands here."""
        return any(one == rank for one, _ in self._standing)

    @contextmanager
    def stand(self, rank: Rank) -> Iterator[asyncio.Event]:
        """Stands here while the block runs. The event is set while it has the turn."""
        place = (rank, asyncio.Event())
        insort(self._standing, place, key=itemgetter(0))
        self._give_turn()
        try:
            yield place[1]
        finally:
            self._standing.remove(place)
            self._give_turn()

    def _give_turn(self) -> None:
        for number, (_, turn) in enumerate(self._standing):
            if number == 0:
                turn.set()
            else:
                turn.clear()
