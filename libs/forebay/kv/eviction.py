"""Which unreferenced sealed block of a tier goes first. Policies know block indexes and the order of use, no more."""

from collections import OrderedDict
from itertools import islice
from typing import Protocol


class EvictionPolicy(Protocol):
    """Orders the blocks that may be evicted. A block is here exactly while it is sealed and nobody refers to it."""

    def admit(self, block: int) -> None:
        """The block may be evicted from now on; it has just been used."""
        ...

    def withdraw(self, block: int) -> None:
        """The block is referred to again, or gone."""
        ...

    def coldest(self, count: int) -> list[int]:
        """The `count` blocks to evict first, coldest first; fewer when there are fewer. Changes nothing."""
        ...

    def __len__(self) -> int:
        """Blocks that may be evicted."""
        ...


class LeastRecentlyUsed:
    """Evicts what was released longest ago."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def admit(self, block: int) -> None:
        self._blocks[block] = None

    def withdraw(self, block: int) -> None:
        del self._blocks[block]

    def coldest(self, count: int) -> list[int]:
        return list(islice(self._blocks, count))

    def __len__(self) -> int:
        return len(self._blocks)
