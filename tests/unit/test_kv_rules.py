"""The rules of KV rights hold over random interleavings, and a ledger that breaks one of them is caught."""

import random
from collections.abc import Collection

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from forebay.kv.attachments import AttachmentRecord
from forebay.kv.effects import Effects
from forebay.kv.lease import Right, SequenceLease
from forebay.kv.ledger import BlockLedger
from forebay.testing.kv_model import OPERATIONS, ModelNode

NAMES = [name for name, weight in OPERATIONS.items() for _ in range(weight)]
HOST_BLOCKS = (0, 3, 6)


class Rules(RuleBasedStateMachine):
    """Hypothesis chooses the interleaving, and shortens what fails."""

    @initialize(host_blocks=st.sampled_from(HOST_BLOCKS))
    def start(self, host_blocks: int) -> None:
        self.node = ModelNode(host_blocks)

    @rule(name=st.sampled_from(NAMES), a=st.integers(0, 99), b=st.integers(0, 99), c=st.integers(0, 99))
    def step(self, name: str, a: int, b: int, c: int) -> None:
        getattr(self.node, name)(a, b, c)
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
        getattr(node, name)(source.randrange(100), source.randrange(100), source.randrange(100))
        node.check()
    node.end()
    return node


@pytest.mark.parametrize("host_blocks", HOST_BLOCKS)
def test_rules_hold_over_random_walks(host_blocks: int) -> None:
    stats = [walk(seed, ModelNode(host_blocks)).ledger.stats() for seed in range(1000)]
    # The walks are worth something only if they get to these places.
    assert sum(each.take_overs for each in stats) > 100
    assert sum(each.prefix_blocks_found for each in stats) > 1000
    assert sum(each.evicted_blocks for each in stats) > 100


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
        for seed in range(300):
            walk(seed, ModelNode(3, ledger_type))

    with pytest.raises(AssertionError):
        fails()


def test_skipped_copy_is_caught() -> None:
    def fails() -> None:
        for seed in range(300):
            walk(seed, ModelNode(6, copies=False))

    with pytest.raises(AssertionError, match="holds something else"):
        fails()
