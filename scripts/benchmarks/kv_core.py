"""The pure core of the KV-cache service: bytes per block, time to find a prefix, block operations a second.

An index holds a million blocks, in a fresh process whose resident memory is counted: filled once, and after every block
was replaced twice. The prefix that is looked for lies in no processor cache. Operations go through BlockLedger:
requests of 32 blocks, of which nothing is cached, in a full tier, so that each block is acquired (which evicts
another), sealed and released.

Example:
  scripts/bench kv_core      some two minutes
"""

import json
import os
import subprocess
import sys
import time
from typing import Any, Final

from forebay.kv.attachments import WorkerProcess
from forebay.kv.grant import SealEntry
from forebay.kv.ledger import BlockLedger, LedgerSettings
from forebay.kv.tiered_store import StoreSettings, TieredStore
from scripts.benchmarks.kv_index_process import INDEXES
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report

_TIER_BLOCKS: Final = 65_536
_REQUEST_BLOCKS: Final = 32
_REQUESTS: Final = _TIER_BLOCKS // _REQUEST_BLOCKS
_OPERATIONS_PER_BLOCK: Final = 3


def run(options: Options) -> None:
    """Each index once; operations `rounds` times."""
    figures: list[Figure] = []
    for name in INDEXES:
        figures += _index_figures(name)
    blocks_per_s = _blocks_per_s(options.rounds)
    figures += [
        Figure("block operations (acquire, seal, release)", blocks_per_s * _OPERATIONS_PER_BLOCK, "/s", ">= 300000"),
        Figure("  blocks through all three of them", blocks_per_s, "/s"),
    ]
    report("kv_core", figures)


def _index_figures(name: str) -> list[Figure]:
    process = subprocess.run(
        [sys.executable, "-m", "scripts.benchmarks.kv_index_process", name], capture_output=True, check=True, text=True
    )
    answer: dict[str, Any] = json.loads(process.stdout)
    index = "router's prefix index" if name == "router" else f"block pool, {name}"
    return [
        Figure(f"{index}: filled", answer["filled"], "bytes/block", "<= 200"),
        Figure(f"{index}: every block replaced", answer["changed"], "bytes/block", "<= 200"),
        Figure(f"{index}: find a prefix of 4,096", answer["find_s"] * 1e3, "ms", "<= 1"),
        Figure(f"{index}: find it again, from the processor's caches", answer["find_again_s"] * 1e3, "ms"),
    ]


def _blocks_per_s(rounds: int) -> float:
    ledger = BlockLedger(TieredStore(StoreSettings(_TIER_BLOCKS)), LedgerSettings(lease_s=6.0, grace_s=60.0))
    attachment_id = ledger.attach(WorkerProcess("worker", 1, 1))
    _serve(ledger, attachment_id)  # fills the tier
    return _REQUESTS * _REQUEST_BLOCKS / median([_serve(ledger, attachment_id) for _ in range(rounds)])


def _serve(ledger: BlockLedger, attachment_id: int) -> float:
    """Serves requests that nothing is cached of; returns the seconds."""
    prompts = [[os.urandom(16) for _ in range(_REQUEST_BLOCKS)] for _ in range(_REQUESTS)]
    began_s = time.perf_counter()
    for number, hashes in enumerate(prompts):
        name = str(number)
        epoch = ledger.begin(attachment_id, name, hashes, _REQUEST_BLOCKS, 0.0).epoch
        ledger.seal(attachment_id, SealEntry(name, epoch, 0, hashes), 0.0)
        ledger.release(attachment_id, [(name, epoch)])
    return time.perf_counter() - began_s
