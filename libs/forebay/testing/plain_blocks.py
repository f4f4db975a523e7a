"""Both ends of a pull over plain memory: a node's sealed blocks, and a target that keeps what arrives."""

import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from xxhash import xxh3_128_digest

from forebay.kv.block_transport import HeldBlock, SequenceState
from forebay.kv.layout import KvLayout


def random_block(block_hash: bytes, block_bytes: int) -> bytearray:
    """The content that tests give a block of this name, the same in every process."""
    return bytearray(random.Random(block_hash).randbytes(block_bytes))  # noqa: S311  # to be told apart, not kept secret


class PlainBlocks:
    """SealedBlocks in bytearrays. `held` counts references; a block with none may be evicted."""

    def __init__(self, layout: KvLayout) -> None:
        self.layout = layout
        self.held: Counter[HeldBlock] = Counter()
        self._blocks: dict[bytes, HeldBlock] = {}
        self._states: dict[str, SequenceState] = {}
        self._followers: dict[str, list[Callable[[], None]]] = {}

    @property
    def references(self) -> int:
        """All references taken and not given back."""
        return self.held.total()

    def begin(self, sequence_id: str) -> None:
        """Somebody computes this sequence."""
        self._set(sequence_id, SequenceState.SEALING)

    def seal(self, block_hash: bytes, data: bytes | bytearray | memoryview, sequence_id: str | None = None) -> None:
        """The block is there. `data` stays its memory, which a test may spoil."""
        digest = xxh3_128_digest(data)
        self._blocks[block_hash] = HeldBlock(memoryview(data).toreadonly(), lambda: digest)
        if sequence_id is not None:
            self._tell(sequence_id)

    def end(self, sequence_id: str) -> None:
        """No more of it will be sealed."""
        self._set(sequence_id, SequenceState.ENDED)

    def lose(self, sequence_id: str) -> None:
        """Its worker died."""
        self._set(sequence_id, SequenceState.LOST)

    @asynccontextmanager
    async def fetched(self, block_hashes: Sequence[bytes]) -> AsyncIterator[None]:
        """As SealedBlocks.fetched: all lie in memory."""
        yield

    def hold(self, block_hash: bytes) -> HeldBlock | None:
        """As SealedBlocks.hold."""
        block = self._blocks.get(block_hash)
        if block is not None:
            self.held[block] += 1
        return block

    def release(self, block: HeldBlock) -> None:
        """As SealedBlocks.release."""
        assert self.held[block] > 0, "released more often than held"
        self.held[block] -= 1

    def state_of(self, sequence_id: str) -> SequenceState:
        """As SealedBlocks.state_of."""
        return self._states.get(sequence_id, SequenceState.ENDED)

    def follow(self, sequence_id: str, on_change: Callable[[], None]) -> Callable[[], None]:
        """As SealedBlocks.follow."""
        followers = self._followers.setdefault(sequence_id, [])
        followers.append(on_change)
        return lambda: followers.remove(on_change)

    def followers(self) -> int:
        """How many follow any sequence."""
        return sum(map(len, self._followers.values()))

    def _set(self, sequence_id: str, state: SequenceState) -> None:
        self._states[sequence_id] = state
        self._tell(sequence_id)

    def _tell(self, sequence_id: str) -> None:
        for on_change in tuple(self._followers.get(sequence_id, ())):
            on_change()


class PlainTarget:
    """BlockTarget in bytearrays. Fails when a block that has arrived is asked for again, to be written."""

    def __init__(
        self, block_count: int, block_bytes: int, on_arrival: Callable[[int], None] = lambda index: None
    ) -> None:
        self.blocks: Sequence[bytearray] = [bytearray(block_bytes) for _ in range(block_count)]
        self.arrivals: list[int] = []
        self._on_arrival = on_arrival

    def memory(self, block_index: int) -> memoryview:
        """As BlockTarget.memory."""
        assert block_index not in self.arrivals, f"block {block_index} has arrived and must not be written"
        return memoryview(self.blocks[block_index])

    def arrived(self, block_index: int) -> None:
        """As BlockTarget.arrived."""
        self.arrivals.append(block_index)
        self._on_arrival(block_index)
