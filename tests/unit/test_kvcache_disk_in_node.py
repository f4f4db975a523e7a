"""What a node makes of its disk: what is found there at the start, and that it fails."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from xxhash import xxh3_128_digest

from forebay.errors import DiskFailedError
from forebay.kv.effect_log import EffectLog
from forebay.kv.ledger import BlockLedger, LedgerSettings
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore
from forebay.kvcache.__main__ import restore_disk, traffic_of
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.disk.shape import FileShape
from forebay.kvcache.disk.store import DiskStore
from forebay.kvcache.mover import BlockMover
from forebay.kvcache.node import KvNode
from forebay.testing.plain_node import NobodyFollows, PlainMemory
from forebay.testing.torn_file import TornFile

SHAPE = FileShape(block_bytes=100, block_count=4)
NAME, *NAMES = (xxh3_128_digest(bytes([number])) for number in range(8))


@contextmanager
def node_over(file: TornFile) -> Iterator[tuple[KvNode, DiskStore, TieredStore]]:
    """A node whose disk holds one block."""
    disk = DiskStore(file, SHAPE)
    disk.write(0, NAME, memoryview(bytes(SHAPE.block_bytes)))
    store = TieredStore(StoreSettings(1, 2, SHAPE.block_count, kept_after_uses=1))
    memory = {Tier.DEVICE: PlainMemory(1, SHAPE.block_bytes), Tier.HOST: PlainMemory(2, SHAPE.block_bytes)}
    carrier = Carrier(BlockMover(memory, SHAPE.block_bytes), {})
    ledger = BlockLedger(store, LedgerSettings(10.0, 2.0))
    node = KvNode(ledger, store, carrier, NobodyFollows(), lambda: 0.0, lambda process: True)
    carrier.disk = traffic_of(disk, carrier, node)
    yield node, disk, store
    disk.close()


async def test_a_disk_that_cannot_be_read_at_the_start_is_off_and_ends_nothing() -> None:
    file = TornFile(SHAPE.size_bytes)
    with node_over(file) as (node, disk, _):
        file.error = OSError(5, "Input/output error")
        restore_disk(node, disk)
        assert disk.stats.failure is not None
        assert node.find(NAME) is None
        assert node.blocks.prefetch([NAME]) == 0


async def test_a_disk_that_fails_while_it_is_verified_is_off() -> None:
    file = TornFile(SHAPE.size_bytes)
    with node_over(file) as (node, disk, _):
        restore_disk(node, disk)
        assert node.find(NAME) is Tier.DISK
        file.error = OSError(5, "Input/output error")
        with pytest.raises(DiskFailedError):
            await node.verify()
        assert node.find(NAME) is None, "what cannot be read is not there"


async def test_after_a_restart_the_oldest_on_disk_goes_first_and_the_later_of_two_is_kept() -> None:
    with node_over(TornFile(SHAPE.size_bytes)) as (node, disk, store):
        for slot, name in ((1, NAMES[0]), (2, NAMES[1]), (3, NAME)):
            disk.write(slot, name, memoryview(bytes(SHAPE.block_bytes)))
        restore_disk(node, disk)
        held = store.traffic.hold_slot(NAME)
        assert held is not None
        assert held.block == 3
        store.traffic.let_go([held], EffectLog())
        for name in NAMES[2:5]:  # each evicts the one before, which is written to disk: two need a slot, one is free
            blocks = store.lease(1, EffectLog())
            store.seal(blocks, [name], EffectLog())
            store.give_back(blocks, 1)
        assert [node.find(name) for name in (NAMES[0], NAMES[1], NAME)] == [None, Tier.DISK, Tier.DISK]
