"""What a node's pure core needs around it in tests: memory in a bytearray, and events that nobody follows."""

from collections.abc import Sequence

from forebay.kv.effects import IndexEvent


class PlainMemory:
    """A TierMemory of so many blocks."""

    def __init__(self, block_count: int, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._memory = memoryview(bytearray(block_count * block_bytes))

    def block(self, index: int, length_bytes: int) -> memoryview:
        """As TierMemory.block: always in place."""
        return self._memory[index * self._block_bytes :][:length_bytes]

    def load(self, index: int, target: memoryview) -> None:
        """As TierMemory.load."""
        target[:] = self.block(index, target.nbytes)

    def store(self, index: int, source: memoryview) -> None:
        """As TierMemory.store."""
        self.block(index, source.nbytes)[:] = source

    def finish(self) -> None:
        """As TierMemory.finish: nothing is ever under way."""


class NobodyFollows:
    """A KvEventSink."""

    def publish(self, first_event_number: int, events: Sequence[IndexEvent]) -> None:
        """As KvEventSink.publish: takes them to nobody."""
