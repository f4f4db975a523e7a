"""The memory of one tier, wherever it lies: what the service does with its blocks. `Arena` and `GpuArena` are such."""

from typing import Protocol


class TierMemory(Protocol):
    """Blocks of one tier. Copies may be under way until `finish`, in the order in which they were begun."""

    def block(self, index: int, length_bytes: int) -> memoryview | None:
        """So many bytes of a block, from its beginning, in place; None where this process cannot address them."""
        ...

    def load(self, index: int, target: memoryview) -> None:
        """Begins to copy a block's first bytes, as many as the target has, into this process's memory."""
        ...

    def store(self, index: int, source: memoryview) -> None:
        """Begins to copy bytes to a block's beginning."""
        ...

    def finish(self) -> None:
        """Returns when all that was begun is done."""
        ...
