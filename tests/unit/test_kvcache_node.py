"""What a node does besides what its ledger decides: it looks whether a writer still lives when another asks."""

import pytest

from forebay.errors import WriterActiveError
from forebay.kv.attachments import WorkerProcess
from forebay.kv.ledger import BlockLedger, LedgerSettings
from forebay.kv.tiered_store import StoreSettings, TieredStore
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.mover import BlockMover
from forebay.kvcache.node import KvNode
from forebay.testing.plain_node import NobodyFollows

DYING, OTHER = WorkerProcess("dying", 1, 1), WorkerProcess("other", 2, 1)


def test_a_request_begins_anew_in_the_moment_its_worker_has_died() -> None:
    dead: set[WorkerProcess] = set()
    store = TieredStore(StoreSettings(4))
    ledger = BlockLedger(store, LedgerSettings(lease_s=10.0, grace_s=2.0))
    carrier = Carrier(BlockMover({}, 1), {})
    node = KvNode(ledger, store, carrier, NobodyFollows(), lambda: 0.0, lambda process: process not in dead)
    dying, _ = node.attach(DYING)
    other, _ = node.attach(OTHER)
    node.begin(dying, "s", [], 3)
    node.detach(dying, DYING)
    with pytest.raises(WriterActiveError):
        node.begin(other, "s", [], 3)
    dead.add(DYING)
    assert len(node.begin(other, "s", [], 3).block_ids) == 3
