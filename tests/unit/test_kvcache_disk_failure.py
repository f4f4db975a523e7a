"""A disk that fails where no block is promoted or written back: the node hears of it all the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from xxhash import xxh3_128_digest

from forebay.errors import DiskFailedError
from forebay.kv.effects import IndexEvent
from forebay.kv.ledger import BlockLedger, LedgerSettings
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore
from forebay.kvcache.__main__ import restore_disk, traffic_of
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.disk.shape import FileShape
from forebay.kvcache.disk.store import DiskStore
from forebay.kvcache.mover import BlockMover
from forebay.kvcache.node import KvNode
from forebay.testing.torn_file import TornFile

SHAPE = FileShape(block_bytes=100, block_count=4)
NAME = xxh3_128_digest(b"one")


class PlainMemory:
    """A TierMemory of blocks that nobody looks at."""

    def block(self, index: int, length_bytes: int) -> memoryview:
        return memoryview(bytearray(length_bytes))

    def load(self, index: int, target: memoryview) -> None:
        """Nothing lies here."""

    def store(self, index: int, source: memoryview) -> None:
        """Nothing is kept."""

    def finish(self) -> None:
        """Nothing is under way."""


class NobodyFollows:
    """A KvEventSink."""

    def publish(self, first_event_number: int, events: tuple[IndexEvent, ...]) -> None:
        """Nobody does."""


@contextmanager
def node_over(file: TornFile) -> Iterator[tuple[KvNode, DiskStore]]:
    """A node whose disk holds one block."""
    disk = DiskStore(file, SHAPE)
    disk.write(0, NAME, memoryview(bytes(SHAPE.block_bytes)))
    store = TieredStore(StoreSettings(2, 2, SHAPE.block_count))
    carrier = Carrier(BlockMover({Tier.DEVICE: PlainMemory(), Tier.HOST: PlainMemory()}, SHAPE.block_bytes), {})
    ledger = BlockLedger(store, LedgerSettings(10.0, 2.0))
    node = KvNode(ledger, store, carrier, NobodyFollows(), lambda: 0.0, lambda process: True)
    carrier.disk = traffic_of(disk, carrier, node)
    yield node, disk
    disk.close()


async def test_a_disk_that_cannot_be_read_at_the_start_is_off_and_ends_nothing() -> None:
    file = TornFile(SHAPE.size_bytes)
    with node_over(file) as (node, disk):
        file.error = OSError(5, "Input/output error")
        restore_disk(node, disk)
        assert disk.stats.failure is not None
        assert node.find(NAME) is None
        assert node.blocks.prefetch([NAME]) == 0


async def test_a_disk_that_fails_while_it_is_verified_is_off() -> None:
    file = TornFile(SHAPE.size_bytes)
    with node_over(file) as (node, disk):
        restore_disk(node, disk)
        assert node.find(NAME) is Tier.DISK
        file.error = OSError(5, "Input/output error")
        with pytest.raises(DiskFailedError):
            await node.verify()
        assert node.find(NAME) is None, "what cannot be read is not there"
