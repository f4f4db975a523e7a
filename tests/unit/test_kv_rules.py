"""The rules of KV rights hold over random interleavings, and a ledger that breaks one of them is caught."""

import random
from collections import Counter
from collections.abc import Collection

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from forebay.kv.attachments import AttachmentRecord
from forebay.kv.effects import Effects
from forebay.kv.lease import Right, SequenceLease
from forebay.kv.ledger import BlockLedger
from forebay.kv.tiered_store import StoreSettings
from forebay.testing.kv_content import ModelContent
from forebay.testing.kv_model import DEVICE_BLOCKS, ModelNode
from forebay.testing.walks import seeds

# What may happen, methods of ModelNode, by how often it should.
OPERATIONS = {
    "attach": 3,
    "begin": 14,
    "take_over": 6,
    "extend": 2,
    "seal": 16,
    "release": 6,
    "release_of_another": 1,
    "renew": 6,
    "late_answer": 2,
    "wait": 3,
    "stop": 2,
    "go_on": 4,
    "crash": 1,
    "restart": 3,
    "break_stream": 1,
    "look_for_dead": 3,
    "scribble": 3,
    "repeat": 3,
    "of_the_service": 10,
    "rarely_of_the_service": 0.2,
    "kill_service": 0.5,
    "kill_service_soon": 1,
}
NAMES = [name for name, weight in OPERATIONS.items() for _ in range(-(-int(weight) or 1))]
HOST_BLOCKS = (0, 3, 6)


def content(host_blocks: int, **planted: bool) -> ModelContent:
    """Tiers of a node; a disk only where there is a HOST tier to read it into."""
    return ModelContent(
        StoreSettings(
            DEVICE_BLOCKS,
            host_blocks,
            8 * (host_blocks > 0),
            free_block_count=6,
            kept_after_uses=2 if host_blocks == 6 else 1,
        ),
        **planted,
    )


class Rules(RuleBasedStateMachine):
    """Hypothesis chooses the interleaving, and shortens what fails."""

    @initialize(host_blocks=st.sampled_from(HOST_BLOCKS))
    def start(self, host_blocks: int) -> None:
        self.node = ModelNode(content(host_blocks))

    @rule(name=st.sampled_from(NAMES), a=st.integers(0, 99), b=st.integers(0, 99), c=st.integers(0, 99))
    def step(self, name: str, a: int, b: int, c: int) -> None:
        self.node.do(name, a, b, c)
        self.node.check()

    def teardown(self) -> None:
        if hasattr(self, "node"):
            self.node.end()


TestRules = Rules.TestCase
TestRules.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def walk(seed: int, node: ModelNode, step_count: int = 120) -> ModelNode:
    """One random interleaving."""
    source = random.Random(seed)
    for name in source.choices(list(OPERATIONS), list(OPERATIONS.values()), k=step_count):
        node.do(name, source.randrange(100), source.randrange(100), source.randrange(100))
        node.check()
    node.end()
    return node


@pytest.mark.parametrize("host_blocks", HOST_BLOCKS)
def test_rules_hold_over_random_walks(host_blocks: int) -> None:
    reached: Counter[str] = Counter()
    for seed in seeds(2200):
        reached += walk(seed, ModelNode(content(host_blocks))).tiers.reached
    # The walks are worth something only if they get to these places.
    places = {"taken over": 100, "found": 1000, "evicted": 100, "restored": 300, "pulled": 300}
    places["killed while carrying out"] = 300
    assert {name for name, count in places.items() if reached[name] < count} == set(), reached


class TakesOverUnfenced(BlockLedger):
    """Planted: a worker whose lease ended is taken for dead."""

    def _fence(self, lease: SequenceLease) -> None:
        super()._fence(lease)
        lease.right = Right.ORPHANED


class FreesByTime(BlockLedger):
    """Planted: a writer is believed to have stopped when lease and grace have passed."""

    def expire(self, now_s: float) -> Effects:
        for lease in list(self._leases.values()):
            if lease.right is Right.FENCED and lease.ends_at_s <= now_s:
                self._release(lease)
        return super().expire(now_s)


class FreesWhatALateHeartbeatDoesNotName(BlockLedger):
    """Planted: a heartbeat is believed that was written before the grant was known."""

    def _release_unnamed(self, attachment: AttachmentRecord, named: Collection[str], known_number: int) -> None:
        super()._release_unnamed(attachment, named, self._last_number + 1)


class KeepsWhatIsNotNamed(BlockLedger):
    """Planted: a grant whose answer was lost is fenced for ever."""

    def _release_unnamed(self, attachment: AttachmentRecord, named: Collection[str], known_number: int) -> None:
        """Releases nothing."""


class ForgetsExpiry(BlockLedger):
    """Planted: nobody releases what ran out."""

    def expire(self, now_s: float) -> Effects:
        return Effects()


class AcceptsStaleEpochs(BlockLedger):
    """Planted: whoever was the owner once may still seal, extend and hand over."""

    def _owned(self, attachment_id: int, sequence_id: str, epoch: int) -> SequenceLease:
        return self._known(sequence_id)


class RepeatsEpochs(BlockLedger):
    """Planted: epochs begin again."""

    def _next_number(self) -> int:
        return super()._next_number() if self._last_number < 20 else 7


@pytest.mark.parametrize(
    "ledger_type",
    [
        TakesOverUnfenced,
        FreesByTime,
        FreesWhatALateHeartbeatDoesNotName,
        KeepsWhatIsNotNamed,
        ForgetsExpiry,
        AcceptsStaleEpochs,
        RepeatsEpochs,
    ],
)
def test_planted_bug_is_caught(ledger_type: type[BlockLedger]) -> None:
    def fails() -> None:
        for seed in range(2000):
            walk(seed, ModelNode(content(3), ledger_type))

    with pytest.raises(AssertionError):
        fails()


def test_skipped_copy_is_caught() -> None:
    def fails() -> None:
        for seed in range(300):
            walk(seed, ModelNode(content(6, copies=False)))

    with pytest.raises(AssertionError):
        fails()
