"""Every eviction policy against a plain one, and what all of them keep to."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.kv.effect_log import EffectLog
from forebay.kv.eviction.block_queues import BlockQueues
from forebay.kv.eviction.eviction_memory import LEAST_NOTES, MOST_USES, NOTES_PER_BLOCK, EvictionMemory, Remembered
from forebay.kv.eviction.least_frequently_used import LeastFrequentlyUsed
from forebay.kv.eviction.least_recently_used import LeastRecentlyUsed
from forebay.kv.eviction.policy import EvictionPolicy, NewPolicy
from forebay.kv.eviction.reuse_rate import LowestReuseRate
from forebay.kv.eviction.s3_fifo import S3Fifo
from forebay.kv.hashing import chain as chain_hash
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore
from forebay.testing.plain_policies import PlainLfu, PlainLru, PlainReuseRate, PlainS3Fifo

PAIRS: list[tuple[NewPolicy, NewPolicy]] = [
    (LeastRecentlyUsed, PlainLru),
    (LeastFrequentlyUsed, PlainLfu),
    (S3Fifo, PlainS3Fifo),
    (LowestReuseRate, PlainReuseRate),
]
POLICIES = [policy for policy, _ in PAIRS]
# A request: which chain it follows, how far, and where it leaves it for blocks of its own.
CHAINS = st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(0, 6))
STEPS = st.lists(st.one_of(CHAINS, st.integers(0, 3)), max_size=60)
CAPACITIES = st.integers(6, 30)


def block_hash(number: int) -> bytes:
    """Hashes that the memory tells apart for certain."""
    return number.to_bytes(16, "big")


def chain(which: int, length: int, leaves_at: int) -> list[bytes]:
    names = [which * 6 + at if at < leaves_at else 1000 + (which * 7 + leaves_at) * 6 + at for at in range(length)]
    return list(map(block_hash, names))


@dataclass
class Driver:
    """A pool of blocks as the policies see one: it makes room, uses what it holds, and lets go in any order."""

    policies: Sequence[EvictionPolicy]
    capacity: int
    block_of: dict[bytes, int] = field(default_factory=dict)
    references: dict[int, int] = field(default_factory=dict)
    running: list[list[int]] = field(default_factory=list)

    def begin(self, hashes: Sequence[bytes]) -> None:
        if sum(count > 0 for count in self.references.values()) + len(hashes) > self.capacity:
            return
        table = []
        for each in hashes:
            if each in self.block_of:
                self.use(self.block_of[each])
                table.append(self.block_of[each])
        self.evict(len(self.block_of) + len(hashes) - len(table) - self.capacity)
        table = [self.block_of[each] if each in self.block_of else self.enter(each) for each in hashes]
        self.running.append(table)

    def use(self, block: int) -> None:
        self.references[block] += 1
        for policy in self.policies:
            policy.use(block)

    def enter(self, each: bytes) -> int:
        block = min(set(range(self.capacity)) - set(self.block_of.values()))
        self.block_of[each], self.references[block] = block, 1
        for policy in self.policies:
            policy.enter(block, each)
        return block

    def evict(self, count: int) -> None:
        (victims,) = {tuple(policy.coldest(max(0, count))) for policy in self.policies}
        assert len(victims) == max(0, count)
        names = {block: each for each, block in self.block_of.items()}
        for block in victims:
            assert self.references.pop(block) == 0
            del self.block_of[names[block]]
            for policy in self.policies:
                policy.drop(block, names[block])

    def end(self, which: int) -> None:
        if not self.running:
            return
        table = self.running.pop(which % len(self.running))
        idle = []
        for block in reversed(table):
            self.references[block] -= 1
            if self.references[block] == 0:
                idle.append(block)
        for policy in self.policies:
            policy.admit(idle)

    def check(self) -> None:
        idle = {block for block, count in self.references.items() if count == 0}
        for policy in self.policies:
            order = policy.coldest(self.capacity + 1)
            assert len(policy) == len(order) == len(idle)
            assert set(order) == idle
        assert len({tuple(policy.coldest(3)) for policy in self.policies}) == 1


@pytest.mark.parametrize(("policy", "plain"), PAIRS)
@settings(max_examples=150, deadline=None)
@given(capacity=CAPACITIES, steps=STEPS)
def test_policy_equals_the_plain_one(
    policy: NewPolicy, plain: NewPolicy, capacity: int, steps: list[tuple[int, int, int] | int]
) -> None:
    driver = Driver([policy(capacity), plain(capacity)], capacity)
    for step in steps:
        if isinstance(step, int):
            driver.end(step)
        else:
            driver.begin(chain(*step))
        driver.check()


@pytest.mark.parametrize("policy", [LeastRecentlyUsed, LeastFrequentlyUsed, LowestReuseRate])
@settings(max_examples=100, deadline=None)
@given(capacity=CAPACITIES, requests=st.lists(CHAINS, max_size=60))
def test_no_beginning_goes_before_its_end(
    policy: NewPolicy, capacity: int, requests: list[tuple[int, int, int]]
) -> None:
    store = TieredStore(StoreSettings(capacity, new_policy=policy))
    for request in requests:
        hashes, log = chain(*request), EffectLog()
        reserved = store.reserve(hashes, len(hashes), log)
        store.seal(reserved.block_ids[reserved.cached_count :], hashes[reserved.cached_count :], log)
        store.give_back(reserved.block_ids, len(hashes))
        held = set(store.hashes(Tier.DEVICE))
        for other in requests:
            run = [each in held for each in chain(*other)]
            assert run == sorted(run, reverse=True), "held: a beginning, and nothing after the first hole"


def run_once(policy: EvictionPolicy, blocks: Sequence[int], names: Sequence[int]) -> None:
    for block, name in zip(blocks, names, strict=True):
        policy.enter(block, block_hash(name))
    policy.admit(blocks[::-1])


@pytest.mark.parametrize("policy", [LeastFrequentlyUsed, LowestReuseRate])
def test_what_was_used_before_it_was_dropped_is_warmer_than_what_is_new(policy: NewPolicy) -> None:
    one = policy(4)
    run_once(one, [0], [7])
    one.drop(0, block_hash(7))
    run_once(one, [1], [7])
    run_once(one, [2], [8])
    assert one.coldest(2) == [2, 1]


def test_s3_fifo_passes_over_what_came_back_as_a_ghost() -> None:
    one = S3Fifo(10)
    run_once(one, [0], [0])
    one.drop(0, block_hash(0))
    run_once(one, [1], [0])
    run_once(one, [2], [2])
    assert one.coldest(2) == [2, 1]


def test_ghosts_older_than_the_capacity_are_forgotten() -> None:
    one = S3Fifo(10)
    for name in range(12):
        run_once(one, [0], [name])
        one.drop(0, block_hash(name))
    run_once(one, [1, 2, 3], [2, 1, 0])  # dropped as the tenth, eleventh and twelfth before now
    assert one.coldest(3) == [3, 2, 1]
    run_once(one, [4], [99])
    assert one.coldest(4) == [3, 2, 4, 1], "the ghost is in the main queue"


@pytest.mark.parametrize(("older_by", "coldest"), [(43, "once"), (65, "twice")])
def test_rate_is_uses_and_one_by_age_and_gap(older_by: int, coldest: str) -> None:
    one = LowestReuseRate(8)  # the gap is 8 until one is seen
    names = iter(range(100, 1000))

    def pass_by(uses: int) -> None:
        for _ in range(uses):
            name = next(names)
            run_once(one, [7], [name])
            one.drop(7, block_hash(name))

    one.enter(0, block_hash(0))
    one.use(0)
    one.admit([0])
    pass_by(older_by - 1)
    run_once(one, [1], [1])
    pass_by(100)
    # 2 / (100 + 8) against 3 / (143 + 8), and against 3 / (165 + 8)
    assert one.coldest(1) == [1 if coldest == "once" else 0]


def test_lost_note_of_a_beginning_does_not_make_it_colder_than_its_end() -> None:
    one = LowestReuseRate(4)
    run_once(one, [0], [5])
    one.drop(0, block_hash(5))  # only the end's note is left
    run_once(one, [1, 2], [4, 5])
    run_once(one, [3], [9])
    assert one.coldest(3) == [3, 2, 1]


def test_popularity_counts_while_ages_are_short_and_age_when_they_are_long() -> None:
    one = LowestReuseRate(8)
    run_once(one, [0], [0])
    one.use(0)
    one.admit([0])
    run_once(one, [1], [1])
    assert one.coldest(1) == [1], "used once, a moment ago"
    for name in range(100, 200):
        run_once(one, [2], [name])
        one.drop(2, block_hash(name))
    run_once(one, [3], [3])
    assert one.coldest(1) == [1]
    one.drop(1, block_hash(1))
    assert one.coldest(1) == [0], "used twice, long ago"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 300), st.integers(0, 1 << 40))))
def test_memory_returns_the_last_note(notes: list[tuple[int, int, int]]) -> None:
    memory = EvictionMemory(10)
    known: dict[int, Remembered] = {}
    for number, use_count, moment in notes:
        memory.remember(block_hash(number), use_count, moment)
        known[number] = Remembered(min(use_count, MOST_USES), moment % (1 << 40))
    assert [memory.recall(block_hash(number)) for number in range(51)] == [known.get(number) for number in range(51)]


@pytest.mark.parametrize("capacity", [0, 1, LEAST_NOTES])
def test_memory_is_bounded_and_keeps_the_newest(capacity: int) -> None:
    memory = EvictionMemory(capacity)
    bound = max(LEAST_NOTES, NOTES_PER_BLOCK * capacity)
    hashes = [chain_hash(bytes(16), [number]) for number in range(2 * bound)]
    for each in hashes:
        memory.remember(each, 1, 0)
        assert memory.recall(each) == Remembered(1, 0)
    recalled_count = sum(memory.recall(each) is not None for each in hashes)
    assert recalled_count <= bound * 1.001, "a fingerprint may be taken for another once in 65,536 times"


@given(st.lists(st.tuples(st.sampled_from(("append", "prepend", "remove")), st.integers(0, 2), st.integers(0, 7))))
def test_queues_are_those_of_lists(script: list[tuple[str, int, int]]) -> None:
    queues, lists = BlockQueues(8, 3), [[], [], []]  # type: tuple[BlockQueues, list[list[int]]]
    for name, queue, block in script:
        holder = next((each for each in lists if block in each), None)
        assert queues.holds(block) == (holder is not None)
        if name == "remove" and holder is not None:
            queues.remove(block)
            holder.remove(block)
        elif name == "append" and holder is None:
            queues.append(queue, block)
            lists[queue].append(block)
        elif name == "prepend" and holder is None:
            queues.prepend(queue, block)
            lists[queue].insert(0, block)
        assert [list(queues.blocks(number)) for number in range(3)] == lists
        assert [queues.first(number) for number in range(3)] == [each[0] if each else None for each in lists]
        assert len(queues) == sum(map(len, lists))
