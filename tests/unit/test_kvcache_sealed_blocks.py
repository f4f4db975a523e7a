"""What pulls keep at the sending node: each its own hold, wherever the block lies by then, and digests one by one."""

import asyncio
from collections.abc import AsyncIterator

from xxhash import xxh3_128_digest

from forebay.kv.attachments import WorkerProcess
from forebay.kv.block_transport import HeldBlock
from forebay.kv.effect_log import EffectLog
from forebay.kv.grant import SealEntry
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kv.ledger import BlockLedger, LedgerSettings
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.mover import BlockMover
from forebay.kvcache.node import KvNode
from forebay.kvcache.transfer.node_sealed_blocks import NodeSealedBlocks
from forebay.kvcache.transfer.running_pull import RunningPull
from forebay.tasks import end_task
from forebay.testing.kv_worker import numbered_hashes
from forebay.testing.plain_blocks import PlainBlocks
from forebay.testing.plain_node import NobodyFollows, PlainMemory
from forebay.testing.waiting import until
from forebay.v1 import pull_pb2
from forebay.wire.pull_request import Opening

LAYOUT = KvLayout(KvDtype.FLOAT32, layers=1, kv_heads=1, head_dim=2, block_tokens=3)  # 48 bytes a block


class Sender:
    """A node of two DEVICE blocks and one HOST block, and what others pull from it."""

    def __init__(self) -> None:
        self.store = TieredStore(StoreSettings(2, 1, kept_after_uses=1))
        self.memory = {tier: PlainMemory(2, LAYOUT.block_bytes) for tier in (Tier.DEVICE, Tier.HOST)}
        carrier = Carrier(BlockMover(self.memory, LAYOUT.block_bytes), {})
        ledger = BlockLedger(self.store, LedgerSettings(10.0, 2.0))
        self.node = KvNode(ledger, self.store, carrier, NobodyFollows(), lambda: 0.0, lambda process: True)
        self.blocks = NodeSealedBlocks(self.node, carrier, LAYOUT, 0.0)


async def test_a_digest_is_of_what_lies_there_now() -> None:
    sender = Sender()
    worker = sender.node.attach(WorkerProcess("w", 1, 1))[0]
    for name in numbered_hashes(3):
        grant = sender.node.begin(worker, "s", [], 2)  # takes both blocks, so that each place holds one after the other
        content = sender.memory[Tier.DEVICE].block(grant.block_ids[0], LAYOUT.block_bytes)
        content[:] = name * (LAYOUT.block_bytes // len(name))
        sender.node.seal(worker, SealEntry("s", grant.epoch, 0, [name]))
        sender.node.release(worker, [("s", grant.epoch)])
        held = sender.blocks.hold(name)
        assert held is not None
        assert held.digest() == xxh3_128_digest(content) == xxh3_128_digest(held.memory)
        sender.blocks.release(held)


async def test_the_end_of_one_pull_leaves_another_its_block_where_that_lies() -> None:
    sender = Sender()
    store, blocks = sender.store, sender.blocks
    (name,) = numbered_hashes(1)
    store.restore(Tier.HOST, [(0, name)], EffectLog())
    first = blocks.hold(name)
    promoted = store.reserve([name], 1, EffectLog())
    second = blocks.hold(name)
    store.give_back(promoted.block_ids, 1)
    assert first is not None
    assert second is not None
    blocks.release(first)
    assert [one.referenced for one in store.counts()] == [1, 0], "it is sent from DEVICE"
    blocks.release(second)
    assert [one.referenced for one in store.counts()] == [0, 0]


class TimedBlocks(PlainBlocks):
    """Notes how many turns others had had whenever a digest is asked for."""

    def __init__(self) -> None:
        super().__init__(LAYOUT)
        self.turns = 0
        self.turns_at_digests: list[int] = []

    def hold(self, block_hash: bytes) -> HeldBlock | None:
        block = super().hold(block_hash)
        return None if block is None else HeldBlock(block.memory, self._digest)

    def release(self, block: HeldBlock) -> None:
        pass

    def _digest(self) -> bytes:
        self.turns_at_digests.append(self.turns)
        return bytes(16)

    async def take_turns(self) -> None:
        while True:
            self.turns += 1
            await asyncio.sleep(0)


async def test_others_have_a_turn_between_two_digests_of_a_long_prefix() -> None:
    blocks, names = TimedBlocks(), list(numbered_hashes(50))
    for name in names:
        blocks.seal(name, bytes(LAYOUT.block_bytes))
    pull = RunningPull(blocks, Opening(None, names, 0, LAYOUT, 2**20, 0.0, wants_data_connection=False))
    assert blocks.turns_at_digests == [], "none while its blocks are taken"
    others = asyncio.create_task(blocks.take_turns())
    pull.start(says_nothing())
    await until(lambda: len(blocks.turns_at_digests) == len(names))
    await pull.close()
    await end_task(others)
    assert len(set(blocks.turns_at_digests)) == len(names)


async def says_nothing() -> AsyncIterator[pull_pb2.PullBlocksRequest]:
    await asyncio.get_running_loop().create_future()
    yield pull_pb2.PullBlocksRequest()
