"""The port of eviction policies. They know block indexes, hashes and the order of use; no sequences, tiers or clock."""

from collections.abc import Callable, Sequence
from typing import Protocol


class EvictionPolicy(Protocol):
    """Orders the blocks of one pool that may be evicted.

    A block's life here: `enter`, then any number of `use` and `admit`, then `drop`. It may be evicted from `admit`
    until the next `use`. What a policy keeps is bounded by the pool's capacity, what it remembers of dropped hashes
    included.
    """

    def enter(self, block: int, block_hash: bytes) -> None:
        """The block was sealed under this hash, and one sequence uses it."""
        ...

    def use(self, block: int) -> None:
        """One more sequence uses the block, which may not be evicted meanwhile."""
        ...

    def admit(self, blocks: Sequence[int]) -> None:
        """Nobody uses these blocks of one sequence any more, last block first: they may be evicted from now on.

        A prefix is useless without its beginning, which therefore must not go before its end.
        """
        ...

    def drop(self, block: int, block_hash: bytes) -> None:
        """A block that might be evicted is gone."""
        ...

    def coldest(self, count: int) -> list[int]:
        """The `count` blocks to evict first, coldest first; fewer when there are fewer. All of them stay evictable."""
        ...

    def __len__(self) -> int:
        """Blocks that may be evicted."""
        ...


NewPolicy = Callable[[int], EvictionPolicy]
"""Makes the policy of a pool of so many blocks."""
