"""What the blocks of a node hold: finds prefixes over the tiers, makes room, promotes, demotes and seals.

Does not know workers, leases or epochs: the ledger decides who may write. Only DEVICE blocks are leased to sequences.
HOST holds what was evicted from DEVICE and had been used at least twice; DISK has copies of what came to HOST, written
while it lies there, so that HOST can drop it without waiting.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from forebay.errors import KvExhaustedError
from forebay.kv.block_traffic import BlockTraffic
from forebay.kv.departure import Departure
from forebay.kv.effect_log import EffectLog
from forebay.kv.effects import BlockRecord, CopyBlock
from forebay.kv.eviction.policy import NewPolicy
from forebay.kv.eviction.reuse_rate import LowestReuseRate
from forebay.kv.pool import TierCounts
from forebay.kv.tier import TIERS, Tier
from forebay.kv.tier_pools import TierPools


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Blocks of each tier. What was used less often than `kept_after_uses` is removed instead of demoted.

    free_block_count: of DEVICE, to be kept free ahead of the requests that need them.
    """

    device_block_count: int
    host_block_count: int = 0
    disk_block_count: int = 0
    kept_after_uses: int = 2
    free_block_count: int = 0
    new_policy: NewPolicy = LowestReuseRate


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks for a sequence: the first `cached_count` hold the prefix and are sealed, the others are to be written."""

    block_ids: list[int]
    cached_count: int
    promoted_count: int


class TieredStore:
    """Content of the tiers of one node. traffic: what the service itself does with sealed blocks."""

    def __init__(self, settings: StoreSettings) -> None:
        counts = (settings.device_block_count, settings.host_block_count, settings.disk_block_count)
        self._pools = TierPools(counts, settings.new_policy)
        self._device, self._host = self._pools.device, self._pools.host
        self._kept_after_uses = settings.kept_after_uses
        self._free_block_count = settings.free_block_count
        self.traffic = BlockTraffic(self._pools)

    @property
    def capacity(self) -> int:
        """Blocks of the DEVICE tier."""
        return self._device.capacity

    @property
    def departures(self) -> Mapping[Departure, int]:
        """Blocks that have left the node, by why they did."""
        return self._pools.departures

    def counts(self) -> tuple[TierCounts, ...]:
        """Blocks by state, DEVICE first; of DISK only where there is one."""
        return self._pools.counts()

    def find(self, block_hash: bytes) -> Tier | None:
        """Nearest tier in which a block is held. Changes no recency."""
        return self._pools.find(block_hash)

    def hashes(self, tier: Tier) -> list[bytes]:
        """Hashes of all findable blocks whose nearest tier this is."""
        return self._pools.hashes(tier)

    def hashes_on_disk(self) -> list[bytes]:
        """Of all blocks that have a copy on disk."""
        return self._pools.disk.hashes()

    def reserve(self, prefix_hashes: Sequence[bytes], block_count: int, log: EffectLog) -> Reservation:
        """Takes the longest run of a prefix held in memory, promoted where needed, and new blocks up to `block_count`.

        Errors: KvExhaustedError; then nothing was done.
        """
        device_blocks: list[int | None] = []  # of the found run; None: lies in HOST
        host_blocks: list[int] = []
        for block_hash, block in zip(prefix_hashes, self._device.find_each(prefix_hashes), strict=True):
            if block is None:
                host_block = self._host.find(block_hash)
                if host_block is None:
                    break
                host_blocks.append(host_block)
            device_blocks.append(block)
        found = [block for block in device_blocks if block is not None]
        new_count = block_count - len(found)
        self._check_room(new_count, idle_found_count=sum(map(self._device.is_idle, found)))
        for block in found:
            self._device.reference(block)
            self._pools.count_uses(block, 1)
        for block in host_blocks:
            self._host.reference(block)  # so that making room does not evict what is to be promoted
        new_blocks = self.lease(new_count, log)
        promoted = new_blocks[: len(host_blocks)]
        self._promote(host_blocks, promoted, log)
        filled = iter(promoted)
        run = [next(filled) if block is None else block for block in device_blocks]
        return Reservation(run + new_blocks[len(host_blocks) :], len(run), len(promoted))

    def lease(self, count: int, log: EffectLog) -> list[int]:
        """Takes DEVICE blocks to be written, evicting where none are free.

        Errors: KvExhaustedError; then nothing was done.
        """
        self._check_room(count, idle_found_count=0)
        missing = count - self._device.free_count
        if missing > 0:
            self._evict(missing, log)
        return self._device.lease(count)

    def seal(self, blocks: Sequence[int], hashes: Sequence[bytes], log: EffectLog) -> None:
        """Makes leased DEVICE blocks immutable and findable, each with one reference."""
        for block, block_hash in zip(blocks, hashes, strict=True):
            if self._device.find(block_hash) is not None:
                self._device.seal(block, None)
                continue
            is_kept_below = self._pools.find(block_hash) is not None
            self._pools.seal_in_device(block, block_hash, log, self._kept_after_uses if is_kept_below else None)
            host_block = self._host.find(block_hash)
            if host_block is not None:
                self._pools.settle(host_block, log)  # the same content has just been written where it is wanted

    def copy(self, block: int, target: int, log: EffectLog) -> None:
        """A leased DEVICE block is to begin with the bytes of a sealed one."""
        log.copies.append(CopyBlock(Tier.DEVICE, block, Tier.DEVICE, target))

    def give_back(self, blocks: Sequence[int], sealed_count: int, *, is_parked: bool = False) -> None:
        """Takes a sequence's blocks back: the first `sealed_count` become cache, the others free.

        is_parked: they will be wanted again, so they are worth keeping below.
        """
        if is_parked:
            for block in blocks[:sealed_count]:
                self._pools.count_uses(block, max(0, self._kept_after_uses - self._pools.uses(block)))
        # Last block first: a prefix is useless without its beginning, which must therefore be evicted last.
        self._device.unreference(blocks[:sealed_count][::-1])
        self._device.free(list(blocks[sealed_count:]))

    def open_fill(self, block_hash: bytes, log: EffectLog) -> int | None:
        """A DEVICE block for bytes of another node, until `traffic.finish_fill`. None: here, on its way, or no room."""
        has_room = self._device.free_count + self._device.evictable_count > 0
        if self._pools.is_in_memory(block_hash) or self.traffic.is_filling(block_hash) or not has_room:
            return None
        (block,) = self.lease(1, log)
        self.traffic.begin_fill(block_hash, block)
        return block

    def free_ahead(self, log: EffectLog) -> None:
        """Evicts until the settings' `free_block_count` is met, or nothing can be evicted. Between requests."""
        missing = min(self._free_block_count - self._device.free_count, self._device.evictable_count)
        if missing > 0:
            self._evict(missing, log)

    def flush(self, log: EffectLog) -> int:
        """Removes all that nobody refers to, from all tiers; returns how many blocks."""
        dropped_count = 0
        for pool in (self._device, self._host, self._pools.disk):
            for block in pool.coldest(pool.evictable_count):
                self._pools.drop(pool, block, log, Departure.FLUSHED)
                dropped_count += 1
        return dropped_count

    def restore(self, tier: Tier, blocks: Iterable[tuple[int, bytes]], log: EffectLog) -> None:
        """At start: these blocks of a tier hold content of these hashes, from before a crash or restart."""
        for index, block_hash in self._pools[tier].adopt(blocks):
            others = [other for other in TIERS if other is not tier and self._pools[other].find(block_hash) is not None]
            if tier is not Tier.DISK:
                log.records.append(BlockRecord(tier, index, block_hash))
            if not others or TIERS.index(tier) < TIERS.index(others[0]):
                log.change(block_hash, others[0] if others else None, tier)

    def _check_room(self, new_count: int, idle_found_count: int) -> None:
        available = self._device.free_count + self._device.evictable_count - idle_found_count
        if new_count > available:
            raise KvExhaustedError(
                f"{new_count} KV blocks are wanted and {available} of {self._device.capacity} can be had now",
                wanted_blocks=str(new_count),
                available_blocks=str(available),
            )

    def _evict(self, count: int, log: EffectLog) -> None:
        """Frees `count` DEVICE blocks: of those worth keeping, the warmest go to HOST as far as it has room."""
        victims = self._device.coldest(count)
        worthy = [block for block in victims if self._is_worth_keeping(block)]
        demoted_count = min(len(worthy), self._host.free_count + self._host.evictable_count)
        for block in self._host.coldest(max(0, demoted_count - self._host.free_count)):
            self._pools.drop(self._host, block, log)
        demoted = set(worthy[len(worthy) - demoted_count :])
        for block in victims:
            if block in demoted:
                self._demote(block, log)
            else:
                self._pools.drop(self._device, block, log)

    def _is_worth_keeping(self, block: int) -> bool:
        is_used = self._pools.uses(block) >= self._kept_after_uses
        return is_used and self._host.find(self._device.hash_of(block)) is None

    def _demote(self, block: int, log: EffectLog) -> None:
        (host_block,) = self._host.lease(1)
        block_hash = self._device.hash_of(block)
        self._pools.seal_in_host(host_block, block_hash, log)
        self._pools.drop(self._device, block, log)
        log.copies.append(CopyBlock(Tier.DEVICE, block, Tier.HOST, host_block))
        self._host.unreference([host_block])
        self.traffic.write_back(block_hash, host_block, log)

    def _promote(self, host_blocks: list[int], device_blocks: list[int], log: EffectLog) -> None:
        for host_block, device_block in zip(host_blocks, device_blocks, strict=True):
            block_hash = self._host.hash_of(host_block)
            self._pools.seal_in_device(device_block, block_hash, log, self._kept_after_uses)
            log.copies.append(CopyBlock(Tier.HOST, host_block, Tier.DEVICE, device_block))
            self._host.unreference([host_block])
            self._pools.settle(host_block, log)
