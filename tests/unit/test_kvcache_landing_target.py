"""What is staged on the way to another layout is bounded, converted run by run, and given up."""

import dataclasses

from forebay.errors import BlockCorruptError
from forebay.kernels.converter_reference import ReferenceConverter
from forebay.kv.block_traffic import Held
from forebay.kv.bring_run import bring_runs
from forebay.kv.conversion import plan_conversion
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore
from forebay.kvcache.node_blocks import NodeBlocks
from forebay.kvcache.transfer.landing import Landing
from forebay.kvcache.transfer.landing_target import ConvertingTarget
from forebay.kvcache.transfer.puller import WINDOW_BYTES

SMALL = KvLayout(KvDtype.FLOAT32, layers=64, kv_heads=8, head_dim=64, block_tokens=8)  # 2 MiB a block
LARGE = dataclasses.replace(SMALL, block_tokens=16)


class Arrival:
    """A landing of so many blocks over memory that nobody looks at, and the target that fills it."""

    def __init__(self, count: int, source: KvLayout, target: KvLayout) -> None:
        self.blocks = NodeBlocks(TieredStore(StoreSettings(count)), lambda effects: None)
        self.hashes = [index.to_bytes(16, "big") for index in range(count)]
        self.memory = memoryview(bytearray(target.block_bytes))
        self.landing = Landing(self.blocks, self, self.hashes)
        plan = plan_conversion((source,), target)
        runs = bring_runs(plan, count * target.block_tokens // source.block_tokens, count)
        self.target = ConvertingTarget(self.landing, runs, ReferenceConverter(plan))

    def open(self, tier: Tier, index: int) -> memoryview:
        return self.memory

    def written(self, tier: Tier, index: int, opened: memoryview) -> None:
        assert opened is self.memory

    def held(self) -> list[Held]:
        return [held for one in self.hashes if (held := self.blocks.hold(one)) is not None]


def test_a_run_is_converted_when_all_of_it_is_here() -> None:
    arrival = Arrival(2, SMALL, LARGE)
    assert arrival.target.source_indexes == [0, 1, 2, 3]
    for index in (2, 0, 3):
        arrival.target.memory(index)
        arrival.target.arrived(index)
    assert [arrival.landing.is_open(index) for index in range(2)] == [True, False]
    arrival.target.memory(1)
    arrival.target.arrived(1)
    assert arrival.landing.open_count == 0
    assert [(one.tier, one.block_hash) for one in arrival.held()] == [(Tier.DEVICE, one) for one in arrival.hashes]


def test_blocks_that_are_here_are_not_asked_for_again() -> None:
    arrival = Arrival(4, LARGE, SMALL)
    arrival.landing.finish(0)
    arrival.landing.finish(1)
    arrival.landing.finish(2)
    plan = plan_conversion((LARGE,), SMALL)
    target = ConvertingTarget(arrival.landing, bring_runs(plan, 2, 4), ReferenceConverter(plan))
    assert target.source_indexes == [1], "its second half is missing"
    target.memory(0)
    target.arrived(0)
    assert arrival.landing.open_count == 0


def staged_before_refusal(target: ConvertingTarget) -> int:
    for count, index in enumerate(range(0, 80, 2)):  # the other half of each run never comes right
        try:
            target.memory(index)
        except BlockCorruptError:
            return count
    raise AssertionError("all of it is staged")


def test_a_source_that_spoils_every_run_cannot_fill_the_memory() -> None:
    arrival = Arrival(40, SMALL, LARGE)
    assert staged_before_refusal(arrival.target) * SMALL.block_bytes <= WINDOW_BYTES + 5 * SMALL.block_bytes
    arrival.landing.close()
    assert arrival.landing.open_count == 0
    assert arrival.held() == []
