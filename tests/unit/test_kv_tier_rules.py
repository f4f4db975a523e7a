"""Content of all tiers under pressure: what is found is right, whatever moves, fails, or is killed meanwhile."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from xxhash import xxh3_128_digest

from forebay.kv.block_traffic import BlockTraffic, Held
from forebay.kv.departure import Departure
from forebay.kv.effect_log import EffectLog
from forebay.kv.tier_pools import TierPools
from forebay.kv.tiered_store import StoreSettings, TieredStore
from forebay.testing.kv_content import ModelContent, ServiceKilledError
from forebay.testing.walks import seeds

# device, host and disk blocks, and uses after which a block is kept
SHAPES = ((6, 2, 9, 1), (6, 3, 5, 2), (8, 0, 0, 1), (5, 1, 12, 1))
WEIGHTS = {
    "open": 20,
    "compute": 20,
    "close": 16,
    "end_write": 12,
    "end_read": 10,
    "fetch": 16,
    "end_fetch": 12,
    "begin_fill": 2,
    "end_fill": 3,
    "hold": 2,
    "let_go": 3,
    "pin": 1,
    "free_ahead": 2,
    "flip": 4,
    "flush": 0.1,
    "disk_off": 0.03,
    "kill": 0.2,
    "kill_soon": 0.5,
}
NAMES = [name for name, weight in WEIGHTS.items() for _ in range(max(1, int(weight)))]


class Busy:
    """A node under pressure. Numbers choose what happens."""

    def __init__(self, content: ModelContent) -> None:
        self.content = content
        self.now_s = 0.0

    def do(self, name: str, a: int, b: int) -> None:
        content = self.content
        hashes = [xxh3_128_digest(bytes([a % 5 if depth else 0, depth])) for depth in range(1 + b % 4)]
        self.now_s += 1
        actions: dict[str, Callable[[], None]] = {
            "open": lambda: content.open_sequence(hashes, a % 2),
            "compute": lambda: content.compute(a, 1 + b % 4),
            "close": lambda: content.close_sequence(a),
            "end_write": lambda: content.end_write(a, b),
            "end_read": lambda: content.end_read(a, b),
            "fetch": lambda: content.fetch(hashes),
            "end_fetch": lambda: content.end_fetch(a),
            "begin_fill": lambda: content.begin_fill(hashes[-1]),
            "end_fill": lambda: content.end_fill(a, b),
            "hold": lambda: content.hold(hashes[-1]),
            "let_go": lambda: content.let_go(a),
            "pin": lambda: content.pin(hashes[:2], self.now_s + b),
            "free_ahead": content.free_ahead,
            "flip": lambda: content.flip(a),
            "flush": content.flush,
            "disk_off": content.switch_disk_off,
            "kill": content.start,
            "kill_soon": lambda: setattr(content, "steps_to_live", a % 9),
        }
        try:
            actions[name]()
            content.expire_pins(self.now_s)
        except ServiceKilledError:
            content.start()
        content.check()

    def end(self) -> None:
        content = self.content
        content.steps_to_live = None
        content.end()
        content.check()
        assert all((one.leased, one.referenced) == (0, 0) for one in content.store.counts()), "a leak"


def busy(shape: tuple[int, int, int, int], **planted: object) -> Busy:
    return Busy(ModelContent(StoreSettings(*shape, free_block_count=3), **planted))  # type: ignore[arg-type]


class TierRules(RuleBasedStateMachine):
    """Hypothesis chooses the interleaving, and shortens what fails."""

    @initialize(shape=st.sampled_from(SHAPES))
    def start(self, shape: tuple[int, int, int, int]) -> None:
        self.busy = busy(shape)

    @rule(name=st.sampled_from(NAMES), a=st.integers(0, 99), b=st.integers(0, 99))
    def step(self, name: str, a: int, b: int) -> None:
        self.busy.do(name, a, b)

    def teardown(self) -> None:
        if hasattr(self, "busy"):
            self.busy.end()


TestTierRules = TierRules.TestCase
TestTierRules.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


def walk(seed: int, node: Busy, step_count: int = 250) -> Counter[str]:
    source = random.Random(seed)
    for name in source.choices(list(WEIGHTS), list(WEIGHTS.values()), k=step_count):
        node.do(name, source.randrange(100), source.randrange(100))
    node.end()
    return node.content.reached


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_found_is_right_over_random_walks(shape: tuple[int, int, int, int]) -> None:
    reached: Counter[str] = Counter()
    for seed in seeds(1000):
        reached += walk(seed, busy(shape))
    places = {"found": 5000, "pulled": 300, "restored": 500, "killed while carrying out": 150}
    if shape[1]:
        places |= {
            "promoted": 300,
            "written to disk": 500,
            "read from disk": 80 // shape[3] ** 2,
            "corrupt on disk": 10,
        }
    assert {name for name, count in places.items() if reached[name] < count} == set(), reached


class ForgetsToHoldWhatItWrites(BlockTraffic):
    """Planted: a HOST block is given to another while it is being written to disk."""

    def write_back(self, block_hash: bytes, host_block: int, log: EffectLog) -> None:
        before = len(log.writes)
        super().write_back(block_hash, host_block, log)
        if len(log.writes) > before:
            self._pools.host.unreference([host_block])

    def finish_write(self, block_hash: bytes, log: EffectLog, *, is_good: bool) -> None:
        host_block = self._writes[block_hash].host_index
        if self._pools.host.find(block_hash) == host_block:
            self._pools.host.reference(host_block)
            super().finish_write(block_hash, log, is_good=is_good)
        else:
            self._pools.disk.free([self._writes.pop(block_hash).slot])


class LosesHolds(BlockTraffic):
    """Planted: a fetch that is abandoned lets go of nothing."""

    def let_go(self, held: object, log: EffectLog) -> None:
        """Forgets it."""


class HoldsNothing(BlockTraffic):
    """Planted: what is held may be evicted."""

    def hold(self, block_hash: bytes) -> Held | None:
        held = super().hold(block_hash)
        if held is not None:
            self._pools[held.tier].unreference([held.block])
        return held

    def let_go(self, held: object, log: EffectLog) -> None:
        """Nothing was held."""


class SealsWhatFailed(BlockTraffic):
    """Planted: a read that failed is taken for good."""

    def finish_fill(self, block_hash: bytes, log: EffectLog, *, is_good: bool, is_source_bad: bool = False) -> None:
        super().finish_fill(block_hash, log, is_good=True, is_source_bad=is_source_bad)


def with_traffic(traffic: type[BlockTraffic]) -> Callable[[StoreSettings], TieredStore]:
    class Planted(TieredStore):
        def __init__(self, settings: StoreSettings) -> None:
            super().__init__(settings)
            self.traffic = traffic(self._pools)

    return Planted


class KeepsRecords(TierPools):
    """Planted: the checkpoint goes on telling of blocks that are gone."""

    def drop(self, pool: object, block: int, log: EffectLog, why: Departure = Departure.EVICTED) -> bytes:
        records = list(log.records)
        block_hash = super().drop(pool, block, log, why)  # type: ignore[arg-type]
        log.records = records
        return block_hash


class WithKeptRecords(TieredStore):
    def __init__(self, settings: StoreSettings) -> None:
        super().__init__(settings)
        counts = (settings.device_block_count, settings.host_block_count, settings.disk_block_count)
        self._pools = KeepsRecords(counts, settings.new_policy)
        self._device, self._host = self._pools.device, self._pools.host
        self.traffic = BlockTraffic(self._pools)


PLANTED: dict[str, dict[str, object]] = {
    "copies skipped": {"copies": False},
    "digests skipped": {"digests": False},
    "written while reused": {"store_type": with_traffic(ForgetsToHoldWhatItWrites)},
    "lost release": {"store_type": with_traffic(LosesHolds)},
    "eviction of what is held": {"store_type": with_traffic(HoldsNothing)},
    "failed reads sealed": {"store_type": with_traffic(SealsWhatFailed)},
    "stale checkpoint": {"store_type": WithKeptRecords},
}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bug_is_caught(name: str) -> None:
    def fails() -> None:
        for seed in range(400):
            walk(seed, busy(SHAPES[seed % 2], **PLANTED[name]))

    with pytest.raises(AssertionError):
        fails()
