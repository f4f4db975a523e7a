"""What an operation on KV rights makes others do: tell readers, copy bytes, revoke leases, warn the operator.

Copies within memory MUST be carried out in order, before the operation is answered and before the next one is asked: a
block is free for others as soon as the operation returns. The KV-cache service therefore copies inside its one thread:
a block of 0.7 MB takes about 50 µs, a twentieth of the call it serves, and there is no pending state to get wrong. The
disk is slower: its reads and writes are under way while other operations come, and end by an operation of their own.
"""

from dataclasses import dataclass

from forebay.kv.attachments import WorkerProcess
from forebay.kv.tier import Tier


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks that became findable, by their 16-byte hashes."""

    tier: Tier
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks that are not held any more."""

    tier: Tier
    hashes: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Moved:
    """Blocks whose nearest tier is another now. What lies in a farther tier besides is not told."""

    from_tier: Tier
    to_tier: Tier
    hashes: tuple[bytes, ...]


IndexEvent = Stored | Removed | Moved


@dataclass(frozen=True, slots=True)
class CopyBlock:
    """One block's bytes to copy; indexes count blocks within their tier."""

    from_tier: Tier
    from_index: int
    to_tier: Tier
    to_index: int


@dataclass(frozen=True, slots=True)
class WriteSlot:
    """A HOST block to be written to a slot of the DISK tier; `BlockTraffic.finish_write` ends it, whatever happens."""

    block_hash: bytes
    host_index: int
    slot: int


@dataclass(frozen=True, slots=True)
class ReadSlot:
    """A slot of the DISK tier to be read into a HOST block; `BlockTraffic.finish_fill` ends it, whatever happens."""

    block_hash: bytes
    slot: int
    host_index: int


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """What a block of a memory tier holds from now on, for whoever comes after a crash. None: nothing to be found.

    None MUST be noted before the copies of the same operation, a hash after them: then a noted hash is always true.
    """

    tier: Tier
    index: int
    block_hash: bytes | None


@dataclass(frozen=True, slots=True)
class Revoked:
    """Sequences that are no longer an attachment's: its worker must stop writing to them."""

    attachment_id: int
    sequence_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Shortage:
    """Something so urgent, 0 the most, waits for blocks: a worker should park what is less so."""

    priority: int


@dataclass(frozen=True, slots=True)
class OverdueFence:
    """Blocks that nobody else can have, because this process lost them long ago and has not said that it stopped."""

    process: WorkerProcess
    block_count: int


@dataclass(frozen=True, slots=True)
class Effects:
    """All that follows from one operation."""

    copies: tuple[CopyBlock, ...] = ()
    writes: tuple[WriteSlot, ...] = ()
    reads: tuple[ReadSlot, ...] = ()
    records: tuple[BlockRecord, ...] = ()
    events: tuple[IndexEvent, ...] = ()
    revoked: tuple[Revoked, ...] = ()
    overdue: tuple[OverdueFence, ...] = ()


NO_EFFECTS = Effects()
