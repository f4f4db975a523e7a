"""What passes between the ledger and its callers about one sequence: rights granted, blocks sealed."""

from collections.abc import Sequence
from dataclasses import dataclass

from forebay.kv.effects import NO_EFFECTS, Effects


@dataclass(frozen=True, slots=True)
class Grant:
    """The right to write a sequence's blocks from `cached_block_count` on; those before it are sealed."""

    epoch: int
    block_ids: tuple[int, ...]
    cached_block_count: int
    promoted_block_count: int = 0
    effects: Effects = NO_EFFECTS


@dataclass(frozen=True, slots=True)
class TakeOver:
    """How a sequence is to be taken over.

    epoch: the one of the hand-over, or of the lost owner's grant. block_count: blocks wanted at least; None: as many as
    it has. sealed_count: most of its blocks that are to be sealed; what its last owner sealed beyond them becomes
    cache, and the sequence has other blocks in their place, the first of them a copy; None: all that are sealed.
    """

    epoch: int
    block_count: int | None = None
    sealed_count: int | None = None


@dataclass(frozen=True, slots=True)
class SealEntry:
    """Blocks of one sequence to seal, from `first_block_index` of its table on.

    With `hand_over` the worker stops writing the sequence altogether.
    """

    sequence_id: str
    epoch: int
    first_block_index: int
    block_hashes: Sequence[bytes]
    hand_over: bool = False


@dataclass(frozen=True, slots=True)
class Sealed:
    """The sequence's epoch after sealing: a new one when it was handed over."""

    epoch: int
    effects: Effects = NO_EFFECTS


@dataclass(frozen=True, slots=True)
class Renewal:
    """Answer to a heartbeat.

    number: to be passed on with the next one; lost: ids of the sequences named that are not the worker's any more.
    """

    number: int
    lost: tuple[str, ...]
