"""What a node's ledger counts."""

from dataclasses import dataclass

from forebay.kv.pool import TierCounts


@dataclass(frozen=True, slots=True)
class LedgerStats:
    """Counts now, and totals since start."""

    tiers: tuple[TierCounts, ...]
    sequences: int
    attachments: int
    prefix_blocks_asked: int
    prefix_blocks_found: int
    evicted_blocks: int
    flushed_blocks: int
    lost_blocks: int
    take_overs: int
