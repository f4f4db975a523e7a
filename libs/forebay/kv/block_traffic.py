"""Sealed blocks that the service itself reads and writes: to and from disk, from other nodes, for other nodes.

Whatever the service reads is referenced until it says that it has ended, and whatever it writes is leased, so that
neither is given to anybody meanwhile. Decides nothing about what sequences may have.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from forebay.kv.departure import Departure
from forebay.kv.effect_log import EffectLog
from forebay.kv.effects import ReadSlot, WriteSlot
from forebay.kv.tier import Tier
from forebay.kv.tier_pools import TierPools

MOST_WRITES: Final = 16
"""Disk writes under way; what comes to HOST meanwhile is not written."""


@dataclass(frozen=True, slots=True)
class Held:
    """A sealed block that is neither evicted nor moved until it is let go."""

    block_hash: bytes
    tier: Tier
    block: int


@dataclass(slots=True, eq=False)
class Fetch:
    """A prefix on its way to memory. held: what is there; awaited: what is still being read."""

    held: list[Held] = field(default_factory=list)
    awaited: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class _Fill:
    """A block that the service writes. slot: of the DISK tier that it is read from, referenced meanwhile."""

    tier: Tier
    block: int
    slot: int | None
    fetches: list[Fetch] = field(default_factory=list)


class BlockTraffic:
    """All that is under way, by hash."""

    def __init__(self, pools: TierPools) -> None:
        self._pools = pools
        self._writes: dict[bytes, WriteSlot] = {}
        self._fills: dict[bytes, _Fill] = {}
        self.is_disk_on = pools.disk.capacity > 0

    def has(self, block_hash: bytes) -> bool:
        """Whether a block is held in some tier."""
        return self._pools.find(block_hash) is not None

    def hold(self, block_hash: bytes) -> Held | None:
        """Keeps a block where it is nearest, once for each call; None: it is not held anywhere."""
        tier = self._pools.find(block_hash)
        if tier is None:
            return None
        block = self._pools[tier].find(block_hash)
        assert block is not None
        self._pools[tier].reference(block)
        return Held(block_hash, tier, block)

    def hold_slot(self, block_hash: bytes) -> Held | None:
        """Keeps a block's copy on disk, wherever else it lies; None: there is none."""
        slot = self._pools.disk.find(block_hash)
        if slot is None or not self.is_disk_on:
            return None
        self._pools.disk.reference(slot)
        return Held(block_hash, Tier.DISK, slot)

    def discard(self, held: Held, log: EffectLog) -> None:
        """Ends a hold of a copy on disk that is not what it should be."""
        self._pools.disk.unreference([held.block])
        self._drop_slot(held.block, log)

    def let_go(self, held: Iterable[Held], log: EffectLog) -> None:
        """Ends holds, of a prefix from its first block on; what nobody else refers to may be evicted again."""
        for one in reversed(list(held)):
            self._pools[one.tier].unreference([one.block])
            if one.tier is Tier.HOST:
                self._pools.settle(one.block, log)
            elif one.tier is Tier.DISK and not self.is_disk_on:
                self._drop_slot(one.block, log)

    def fetch(self, prefix_hashes: Iterable[bytes], log: EffectLog) -> Fetch:
        """Brings the longest held run of a prefix into memory, and holds it there."""
        fetch = Fetch()
        for block_hash in prefix_hashes:
            if block_hash in fetch.awaited:  # named twice: it waits, and is to be abandoned, once
                continue
            if self._pools.is_in_memory(block_hash):
                self._hold_for(fetch, block_hash)
                continue
            fill = self._fills.get(block_hash) or self._read(block_hash, log)
            if fill is None:
                break
            fill.fetches.append(fetch)
            fetch.awaited.add(block_hash)
        return fetch

    def abandon(self, fetch: Fetch, log: EffectLog) -> None:
        """Lets a fetch go. Reads under way go on: what was wanted once may be wanted again."""
        for block_hash in fetch.awaited:
            self._fills[block_hash].fetches.remove(fetch)
        fetch.awaited.clear()
        self.let_go(fetch.held, log)
        fetch.held.clear()

    def is_filling(self, block_hash: bytes) -> bool:
        """Whether this block is being written by the service."""
        return block_hash in self._fills

    def begin_fill(self, block_hash: bytes, device_block: int) -> None:
        """The service writes a leased DEVICE block, with bytes from another node."""
        self._fills[block_hash] = _Fill(Tier.DEVICE, device_block, None)

    def finish_fill(self, block_hash: bytes, log: EffectLog, *, is_good: bool, is_source_bad: bool = False) -> None:
        """The service has stopped writing the block, which holds what its hash says if `is_good`.

        is_source_bad: the disk's copy is not what it should be, and is dropped.
        """
        fill = self._fills.pop(block_hash)
        pool = self._pools[fill.tier]
        if not is_good or self._pools.is_in_memory(block_hash):  # a sequence may have computed it meanwhile
            pool.free([fill.block])
        elif fill.tier is Tier.DEVICE:
            self._pools.seal_in_device(fill.block, block_hash, log, earlier_uses=0)
            pool.unreference([fill.block])
        else:
            self._pools.seal_in_host(fill.block, block_hash, log)
            pool.unreference([fill.block])
        for fetch in fill.fetches:
            fetch.awaited.discard(block_hash)
            if self._pools.is_in_memory(block_hash):
                self._hold_for(fetch, block_hash)
        if fill.slot is not None:
            self._pools.disk.unreference([fill.slot])
            if is_source_bad or not self.is_disk_on:
                self._drop_slot(fill.slot, log)

    def write_back(self, block_hash: bytes, host_block: int, log: EffectLog) -> None:
        """Has a block that came to HOST written to disk, if it is not there and there is a slot for it."""
        is_known = self._pools.disk.find(block_hash) is not None or block_hash in self._writes
        if not self.is_disk_on or is_known or len(self._writes) >= MOST_WRITES:
            return
        if self._pools.make_room(self._pools.disk, log):
            (slot,) = self._pools.disk.lease(1)
            self._pools.host.reference(host_block)
            self._writes[block_hash] = write = WriteSlot(block_hash, host_block, slot)
            log.writes.append(write)

    def finish_write(self, block_hash: bytes, log: EffectLog, *, is_good: bool) -> None:
        """The service has stopped writing a slot, which holds the block if `is_good`."""
        write = self._writes.pop(block_hash)
        disk = self._pools.disk
        if is_good and self.is_disk_on:
            disk.seal(write.slot, block_hash)
            disk.unreference([write.slot])
        else:
            disk.free([write.slot])
        self._pools.host.unreference([write.host_index])
        self._pools.settle(write.host_index, log)

    def switch_disk_off(self, log: EffectLog) -> None:
        """The disk has failed: nothing is read from or written to it any more, and what lies only there is gone."""
        self.is_disk_on = False
        for slot in self._pools.disk.coldest(self._pools.disk.evictable_count):
            self._drop_slot(slot, log)

    def drop_damaged(self, tier: Tier, block: int, log: EffectLog) -> bytes:
        """A block of memory is not what was sealed: it goes, from DEVICE and HOST, unless somebody refers to it there.

        Returns its hash.
        """
        block_hash = self._pools[tier].hash_of(block)
        for pool in (self._pools.device, self._pools.host):
            found = pool.find(block_hash)
            if found is not None and pool.is_idle(found):
                self._pools.drop(pool, found, log, Departure.LOST)
        return block_hash

    def _hold_for(self, fetch: Fetch, block_hash: bytes) -> None:
        held = self.hold(block_hash)
        assert held is not None
        fetch.held.append(held)

    def _drop_slot(self, slot: int, log: EffectLog) -> None:
        if self._pools.disk.is_idle(slot):
            self._pools.drop(self._pools.disk, slot, log, Departure.LOST)

    def _read(self, block_hash: bytes, log: EffectLog) -> _Fill | None:
        """Begins to read a block from disk into HOST, if it is there and HOST has room."""
        disk, host = self._pools.disk, self._pools.host
        slot = disk.find(block_hash)
        if slot is None or not self.is_disk_on or not self._pools.make_room(host, log):
            return None
        (host_block,) = host.lease(1)
        disk.reference(slot)
        self._fills[block_hash] = fill = _Fill(Tier.HOST, host_block, slot)
        log.reads.append(ReadSlot(block_hash, slot, host_block))
        return fill
