"""The disk store against a dict, through kills in mid-write, power cuts and flipped bits: never wrong bytes."""

import random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from forebay.errors import BlockCorruptError
from forebay.kvcache.disk.shape import HEADER_BYTES, RECORD_BYTES, FileShape
from forebay.kvcache.disk.store import DiskStore
from forebay.testing.torn_file import ProcessKilled, TornFile

SHAPE = FileShape(block_bytes=5000, block_count=4)
WRITE_BYTES = 2 * RECORD_BYTES + SHAPE.block_bytes
HASHES = [bytes([number]) * 16 for number in range(6)]


def content(block_hash: bytes) -> bytes:
    return random.Random(block_hash).randbytes(SHAPE.block_bytes)


class ModelDisk:
    """A store, and what it must hold."""

    def __init__(self, store_type: type[DiskStore] = DiskStore) -> None:
        self.file = TornFile(SHAPE.size_bytes)
        self.store_type = store_type
        self.store = store_type(self.file, SHAPE)
        self.holds: dict[int, bytes] = {}
        self.written: dict[int, bytes] = {}  # what was written last, whatever became of it
        self.corrupt_count = 0
        assert self.store.recover() == []

    def write(self, slot: int, block_hash: bytes) -> None:
        self.holds.pop(slot, None)
        self.holds[slot] = block_hash  # behind all others: recovered in the order of writing
        self.written[slot] = block_hash
        self.store.write(slot, block_hash, memoryview(content(block_hash)))

    def forget(self, slot: int) -> None:
        self.holds.pop(slot, None)
        self.store.forget(slot)

    def reopen(self) -> list[tuple[int, bytes]]:
        self.file.restart()
        self.store = self.store_type(self.file, SHAPE)
        return self.store.recover()

    def restart(self) -> None:
        assert self.reopen() == list(self.holds.items())

    def kill_in_write(self, slot: int, block_hash: bytes, after_bytes: int) -> None:
        before = self.holds.pop(slot, None)
        self.file.kill_within(after_bytes)
        with pytest.raises(ProcessKilled):
            self.store.write(slot, block_hash, memoryview(content(block_hash)))
        found = self.reopen()
        assert [each for each in found if each[0] != slot] == list(self.holds.items()), "a kill harms no other slot"
        self.adopt(found)
        # The new block only where what was cut off the record is as what it fell on: a zero. The one written last,
        # though a flipped bit had hidden it, where that bit was cleared and then no other.
        assert self.holds.get(slot) in (None, before, block_hash, self.written.get(slot))
        self.written[slot] = block_hash

    def cut_power(self, seed: int) -> None:
        self.file.cut_power(random.Random(seed))
        self.adopt(self.reopen())

    def flip_bit(self, bit: int) -> None:
        self.file.flip(HEADER_BYTES * 8 + bit)
        self.adopt(self.reopen())

    def adopt(self, found: list[tuple[int, bytes]]) -> None:
        """As the tier does after a restart; but all is read at once, and what is corrupt is dropped."""
        self.holds = dict(found)
        for slot in list(self.holds):
            try:
                self.check(slot)
            except BlockCorruptError:
                self.corrupt_count += 1
                self.forget(slot)

    def check(self, slot: int) -> None:
        into = bytearray(SHAPE.block_bytes)
        self.store.read(slot, self.holds[slot], memoryview(into))
        assert into == content(self.holds[slot]), "wrong bytes were served"

    def check_all(self) -> None:
        for slot in range(SHAPE.block_count):
            if slot in self.holds:
                self.check(slot)
            other = next(each for each in HASHES if each != self.holds.get(slot))
            with pytest.raises(BlockCorruptError):
                self.store.read(slot, other, memoryview(bytearray(SHAPE.block_bytes)))


slots = st.integers(0, SHAPE.block_count - 1)
hashes = st.sampled_from(HASHES)


class Rules(RuleBasedStateMachine):
    """Hypothesis chooses the interleaving, and shortens what fails."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = ModelDisk()

    @rule(slot=slots, block_hash=hashes)
    def write(self, slot: int, block_hash: bytes) -> None:
        self.disk.write(slot, block_hash)

    @rule(slot=slots)
    def forget(self, slot: int) -> None:
        self.disk.forget(slot)

    @rule()
    def restart(self) -> None:
        self.disk.restart()

    @rule(slot=slots, block_hash=hashes, after_bytes=st.integers(0, WRITE_BYTES - 1))
    def kill_in_write(self, slot: int, block_hash: bytes, after_bytes: int) -> None:
        self.disk.kill_in_write(slot, block_hash, after_bytes)

    @rule(seed=st.integers(0, 2**32))
    def cut_power(self, seed: int) -> None:
        self.disk.cut_power(seed)

    @rule(bit=st.integers(0, (SHAPE.size_bytes - HEADER_BYTES) * 8 - 1))
    def flip_bit(self, bit: int) -> None:
        self.disk.flip_bit(bit)

    def teardown(self) -> None:
        self.disk.check_all()


TestRules = Rules.TestCase
TestRules.settings = settings(
    max_examples=300, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def walk(seed: int, store_type: type[DiskStore]) -> ModelDisk:
    """Some writes, then a power cut, again and again."""
    source, disk = random.Random(seed), ModelDisk(store_type)
    for _ in range(10):
        for _ in range(source.randrange(8)):
            disk.write(source.randrange(SHAPE.block_count), source.choice(HASHES))
        disk.kill_in_write(source.randrange(SHAPE.block_count), source.choice(HASHES), source.randrange(WRITE_BYTES))
        disk.cut_power(source.randrange(2**32))
        disk.check_all()
    return disk


def test_walks_meet_what_they_are_for() -> None:
    assert sum(walk(seed, DiskStore).corrupt_count for seed in range(30)) > 50


class SkipsTheDigest(DiskStore):
    def read(self, slot: int, block_hash: bytes, into: memoryview) -> None:
        try:
            super().read(slot, block_hash, into)
        except BlockCorruptError as error:
            if "digest" not in error.message:
                raise


class ForgetsNothing(DiskStore):
    def forget(self, slot: int) -> None:
        pass


@pytest.mark.parametrize("store_type", [SkipsTheDigest, ForgetsNothing])
def test_planted_bug_is_caught(store_type: type[DiskStore]) -> None:
    def fails() -> None:
        for seed in range(30):
            disk = walk(seed, store_type)
            disk.write(0, HASHES[0])
            disk.forget(0)
            disk.restart()

    with pytest.raises(AssertionError):
        fails()
