"""Eviction policies without any cleverness: lists, exact memory, all sorted anew. What the real ones must equal."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(slots=True)
class PlainBlock:
    """What a policy may know of a block: its hash, uses so far, and when it was let go of."""

    block_hash: bytes
    use_count: int
    released_at: int = 0
    order: int = 0  # of its last release, among all


class PlainLru:
    """Evictable blocks in the order of release."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: dict[int, PlainBlock] = {}
        self.evictable: list[int] = []
        self.gone: dict[bytes, PlainBlock] = {}
        self.now = 0
        self.release_count = 0

    def enter(self, block: int, block_hash: bytes) -> None:
        self.now += 1
        known = self.gone.get(block_hash)
        self.blocks[block] = PlainBlock(block_hash, 1 if known is None else known.use_count + 1)

    def use(self, block: int) -> None:
        self.now += 1
        self.blocks[block].use_count += 1
        if block in self.evictable:
            self.evictable.remove(block)

    def admit(self, blocks: Sequence[int]) -> None:
        least_count = 0
        for block in blocks:
            one = self.blocks[block]
            least_count = one.use_count = max(one.use_count, least_count)
            self.release_count += 1
            one.order, one.released_at = self.release_count, self.now
            self.evictable.append(block)

    def drop(self, block: int, block_hash: bytes) -> None:
        self.evictable.remove(block)
        self.gone[block_hash] = self.blocks.pop(block)

    def coldest(self, count: int) -> list[int]:
        return self.evictable[:count]

    def __len__(self) -> int:
        return len(self.evictable)


class PlainLfu(PlainLru):
    """The same, sorted by uses."""

    def coldest(self, count: int) -> list[int]:
        return sorted(self.evictable, key=lambda block: (self.blocks[block].use_count, self.blocks[block].order))[
            :count
        ]


class PlainReuseRate(PlainLru):
    """The same, sorted by (uses + 1) / (age + typical gap)."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.gap = float(max(1, capacity))

    def enter(self, block: int, block_hash: bytes) -> None:
        super().enter(block, block_hash)
        if block_hash in self.gone:
            self.learn(self.gone[block_hash])
        self.blocks[block].use_count = min(15, self.blocks[block].use_count)

    def use(self, block: int) -> None:
        is_idle = block in self.evictable
        super().use(block)
        self.blocks[block].use_count = min(15, self.blocks[block].use_count)
        if is_idle:
            self.learn(self.blocks[block])

    def learn(self, used: PlainBlock) -> None:
        self.gap *= 1.005 if self.now - used.released_at > self.gap else 0.995

    def coldest(self, count: int) -> list[int]:
        return sorted(self.evictable, key=self.rank)[:count]

    def rank(self, block: int) -> tuple[Fraction, int, int]:
        one = self.blocks[block]
        rate = (one.use_count + 1) / (self.now - one.released_at + Fraction(self.gap))
        return rate, one.use_count, one.order


class PlainS3Fifo(PlainLru):
    """Two lists of blocks, and one of hashes; what is in use stays in its list."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.small: list[int] = []
        self.main: list[int] = []
        self.ghosts: list[bytes] = []
        self.came_back: set[int] = set()  # blocks that were ghosts when they entered

    def enter(self, block: int, block_hash: bytes) -> None:
        self.blocks[block] = PlainBlock(block_hash, 0)
        if block_hash in self.ghosts[-self.capacity :]:
            self.came_back.add(block)

    def use(self, block: int) -> None:
        super().use(block)
        self.blocks[block].use_count = min(3, self.blocks[block].use_count)

    def admit(self, blocks: Sequence[int]) -> None:
        is_end_in_main = False
        for block in blocks:
            if block not in self.small + self.main:
                (self.main if block in self.came_back or is_end_in_main else self.small).append(block)
            is_end_in_main = block in self.main
            self.evictable.append(block)

    def drop(self, block: int, block_hash: bytes) -> None:
        if block in self.small:
            self.ghosts.append(block_hash)
            self.small.remove(block)
        else:
            self.main.remove(block)
        self.evictable.remove(block)
        self.came_back.discard(block)
        del self.blocks[block]

    def coldest(self, count: int) -> list[int]:
        victims: list[tuple[list[int], int]] = []
        while len(victims) < min(count, len(self.evictable)):
            taken = [block for _, block in victims]
            free_in_small = [block for block in self.small if block in self.evictable and block not in taken]
            free_in_main = [block for block in self.main if block in self.evictable and block not in taken]
            is_main_too_long = len(self.main) > self.capacity - max(1, self.capacity // 10)
            source = self.main if (is_main_too_long and free_in_main) or not free_in_small else self.small
            block = source.pop(0)
            one = self.blocks[block]
            if block in self.evictable and one.use_count < (2 if source is self.small else 1):
                victims.append((source, block))
                continue
            one.use_count = 0 if source is self.small else max(0, one.use_count - 1)
            self.main.append(block)
        for source, block in reversed(victims):
            source.insert(0, block)
        return [block for _, block in victims]
