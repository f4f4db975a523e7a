"""When all sequences of a worker wait for KV blocks that none will give back, and who gives way then.

Pure: told ranks and times. Knows no blocks, and fails nobody itself.
"""

from collections.abc import Callable, Mapping

from forebay.engine.rank import Rank


class Standstill:
    """Watches over the engine's sequences. What one gives up goes to the first that waits, by rank.

    The last by rank gives way, so the first always gets on: to its end, or until it is alone and the node too small.
    """

    def __init__(self, patience_s: float) -> None:
        """patience_s: how long nobody gets on before somebody gives way; others may end meanwhile."""
        self._patience_s = patience_s
        self._stuck: frozenset[str] = frozenset()
        self._since_s = 0.0

    def note(self, stuck: frozenset[str], now_s: float) -> None:
        """The sequences without room when none of the engine's has any; none when a step was computed."""
        if stuck != self._stuck:
            self._stuck, self._since_s = stuck, now_s

    def who_gives_way(self, inside: Mapping[Rank, str], is_waiting: Callable[[Rank], bool], now_s: float) -> str | None:
        """The id of the sequence that is to end now; asked again, another only after as long a time.

        Args: inside: the engine's sequences by rank; is_waiting: whether one's wish for blocks is refused.
        """
        is_patient = now_s - self._since_s < self._patience_s
        if not inside or is_patient or not all(one in self._stuck and is_waiting(rank) for rank, one in inside.items()):
            return None
        self._since_s = now_s  # what it holds takes a moment to come back
        return inside[max(inside)]
