"""What the blocks of a node hold: finds prefixes over both tiers, makes room, promotes, demotes and seals.

Does not know workers, leases or epochs: the ledger decides who may write. A hash lies in one tier at a time. Only
DEVICE blocks are leased or referred to by sequences; HOST holds what was evicted from DEVICE, until it is wanted again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forebay.errors import KvExhaustedError
from forebay.kv.effects import CopyBlock, Effects, IndexEvent, Moved, Removed, Stored
from forebay.kv.eviction.policy import NewPolicy
from forebay.kv.eviction.reuse_rate import LowestReuseRate
from forebay.kv.pool import BlockPool, TierCounts
from forebay.kv.tier import Tier

TIERS: Final = (Tier.DEVICE, Tier.HOST)
"""The tiers that a node keeps blocks in, nearest first."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """Blocks for a sequence: the first `cached_count` hold the prefix and are sealed, the others are to be written."""

    block_ids: list[int]
    cached_count: int
    promoted_count: int


class EffectLog:
    """Collects what one operation makes others do, in order."""

    def __init__(self) -> None:
        self.copies: list[CopyBlock] = []
        self.events: list[IndexEvent] = []

    def effects(self) -> Effects:
        """All that was collected."""
        return Effects(copies=tuple(self.copies), events=tuple(self.events))


class TieredStore:
    """Content of the DEVICE and HOST tiers of one node."""

    def __init__(self, device_block_count: int, host_block_count: int, new_policy: NewPolicy = LowestReuseRate) -> None:
        self._device = BlockPool(Tier.DEVICE, device_block_count, new_policy)
        self._host = BlockPool(Tier.HOST, host_block_count, new_policy)
        self.evicted_count = 0

    def counts(self) -> tuple[TierCounts, TierCounts]:
        """Blocks by state, DEVICE first."""
        return self._device.counts(), self._host.counts()

    def find(self, block_hash: bytes) -> Tier | None:
        """Tier in which a block is held. Changes no recency."""
        if self._device.find(block_hash) is not None:
            return Tier.DEVICE
        return None if self._host.find(block_hash) is None else Tier.HOST

    def hashes(self, tier: Tier) -> list[bytes]:
        """Hashes of all findable blocks of a tier."""
        return {Tier.DEVICE: self._device, Tier.HOST: self._host}[tier].hashes()

    def reserve(self, prefix_hashes: Sequence[bytes], block_count: int, log: EffectLog) -> Reservation:
        """Takes the longest held run of a prefix, promoted where needed, and new blocks up to `block_count`.

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
        stored: list[bytes] = []
        raised: list[bytes] = []
        for block, block_hash in zip(blocks, hashes, strict=True):
            if self._device.find(block_hash) is not None:
                self._device.seal(block, None)
                continue
            host_block = self._host.find(block_hash)
            if host_block is None:
                stored.append(block_hash)
            else:
                self._host.drop(host_block)  # the same content has just been written where it is wanted
                raised.append(block_hash)
            self._device.seal(block, block_hash)
        if stored:
            log.events.append(Stored(Tier.DEVICE, tuple(stored)))
        if raised:
            log.events.append(Moved(Tier.HOST, Tier.DEVICE, tuple(raised)))

    def give_back(self, blocks: Sequence[int], sealed_count: int) -> None:
        """Takes a sequence's blocks back: the first `sealed_count` become cache, the others free."""
        # Last block first: a prefix is useless without its beginning, which must therefore be evicted last.
        self._device.unreference(blocks[:sealed_count][::-1])
        self._device.free(list(blocks[sealed_count:]))

    def _check_room(self, new_count: int, idle_found_count: int) -> None:
        available = self._device.free_count + self._device.evictable_count - idle_found_count
        if new_count > available:
            raise KvExhaustedError(
                f"{new_count} KV blocks are wanted and {available} of {self._device.capacity} can be had now",
                wanted_blocks=str(new_count),
                available_blocks=str(available),
            )

    def _evict(self, count: int, log: EffectLog) -> None:
        """Frees `count` DEVICE blocks: the warmest move to HOST as far as it has room, the coldest are removed."""
        victims = self._device.coldest(count)
        demoted_count = min(count, self._host.free_count + self._host.evictable_count)
        self._remove(self._host, self._host.coldest(max(0, demoted_count - self._host.free_count)), log)
        self._remove(self._device, victims[: count - demoted_count], log)
        moved: list[bytes] = []
        for block in victims[count - demoted_count :]:
            block_hash = self._device.drop(block)
            log.copies.append(CopyBlock(Tier.DEVICE, block, Tier.HOST, self._host.store(block_hash)))
            moved.append(block_hash)
        if moved:
            log.events.append(Moved(Tier.DEVICE, Tier.HOST, tuple(moved)))

    def _remove(self, pool: BlockPool, blocks: list[int], log: EffectLog) -> None:
        if blocks:
            log.events.append(Removed(pool.tier, tuple(map(pool.drop, blocks))))
            self.evicted_count += len(blocks)

    def _promote(self, host_blocks: list[int], device_blocks: list[int], log: EffectLog) -> None:
        moved: list[bytes] = []
        for host_block, device_block in zip(host_blocks, device_blocks, strict=True):
            self._host.unreference([host_block])
            block_hash = self._host.drop(host_block)
            self._device.seal(device_block, block_hash)
            log.copies.append(CopyBlock(Tier.HOST, host_block, Tier.DEVICE, device_block))
            moved.append(block_hash)
        if moved:
            log.events.append(Moved(Tier.HOST, Tier.DEVICE, tuple(moved)))
