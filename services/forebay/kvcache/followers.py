"""Who waits for news of a sequence: that it sealed a block, or that no more will come. Knows ids and callbacks only."""

from collections.abc import Callable


class SequenceFollowers:
    """Followers by sequence id. News say nothing but that it is worth looking."""

    def __init__(self) -> None:
        self._followers: dict[str, list[Callable[[], None]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._followers.values()))

    def follow(self, sequence_id: str, on_change: Callable[[], None]) -> Callable[[], None]:
        """Calls `on_change` at each news of the sequence, until what this returns is called."""
        self._followers.setdefault(sequence_id, []).append(on_change)

        def unfollow() -> None:
            followers = self._followers[sequence_id]
            followers.remove(on_change)
            if not followers:
                del self._followers[sequence_id]

        return unfollow

    def tell(self, sequence_id: str) -> None:
        """There are news of this sequence."""
        for on_change in tuple(self._followers.get(sequence_id, ())):
            on_change()

    def tell_all(self) -> None:
        """There may be news of any sequence."""
        for sequence_id in tuple(self._followers):
            self.tell(sequence_id)
