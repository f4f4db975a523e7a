"""The pools of a node's tiers together: where a block is nearest, and what that means when one is dropped.

A block may lie in several tiers at once; readers are told of the nearest alone. Knows no sequences, and does not choose
what is dropped.
"""

from collections import Counter

from forebay.kv.departure import Departure
from forebay.kv.effect_log import EffectLog
from forebay.kv.effects import BlockRecord
from forebay.kv.eviction.eviction_memory import MOST_USES, EvictionMemory
from forebay.kv.eviction.policy import NewPolicy
from forebay.kv.pool import BlockPool, TierCounts
from forebay.kv.tier import TIERS, Tier


class TierPools:
    """One pool for each tier; those a node does not have are empty."""

    def __init__(self, block_counts: tuple[int, int, int], new_policy: NewPolicy) -> None:
        """Args: block_counts: of DEVICE, HOST and DISK."""
        self.device, self.host, self.disk = self._in_order = tuple(
            BlockPool(tier, count, new_policy) for tier, count in zip(TIERS, block_counts, strict=True)
        )
        self._finds = [(pool.tier, pool.find) for pool in self._in_order if pool.capacity]
        self._uses = bytearray(self.device.capacity)  # by sequences, of what lies in DEVICE; at most MOST_USES
        self._gone = EvictionMemory(self.device.capacity)  # uses of what left the node
        self.departures: Counter[Departure] = Counter()  # blocks that left the node

    def __getitem__(self, tier: Tier) -> BlockPool:
        """The tier's pool."""
        return self._in_order[TIERS.index(tier)]

    def counts(self) -> tuple[TierCounts, ...]:
        """Blocks by state, DEVICE first; of DISK only where there is one."""
        return tuple(pool.counts() for pool in self._in_order if pool.capacity or pool is not self.disk)

    def find(self, block_hash: bytes) -> Tier | None:
        """Nearest tier in which a block is held. Changes no recency."""
        for tier, find in self._finds:
            if find(block_hash) is not None:
                return tier
        return None

    def is_in_memory(self, block_hash: bytes) -> bool:
        """Whether it lies in DEVICE or HOST."""
        return self.device.find(block_hash) is not None or self.host.find(block_hash) is not None

    def hashes(self, tier: Tier) -> list[bytes]:
        """Hashes of all findable blocks whose nearest tier this is."""
        return [one for one in self[tier].hashes() if self.find(one) is tier]

    def uses(self, device_block: int) -> int:
        """How often sequences have used what lies in a DEVICE block, as far as is remembered."""
        return self._uses[device_block]

    def count_uses(self, device_block: int, count: int) -> None:
        """So many uses more."""
        self._uses[device_block] = min(self._uses[device_block] + count, MOST_USES)

    def seal_in_device(self, block: int, block_hash: bytes, log: EffectLog, earlier_uses: int | None = None) -> None:
        """A DEVICE block holds this from now on, with one reference.

        earlier_uses: None: as many as are remembered of what left the node.
        """
        before = self.find(block_hash)
        self.device.seal(block, block_hash)
        if earlier_uses is None:
            known = self._gone.recall(block_hash)
            earlier_uses = 0 if known is None else known.use_count
        self._uses[block] = 0
        self.count_uses(block, earlier_uses + 1)
        log.records.append(BlockRecord(Tier.DEVICE, block, block_hash))
        log.change(block_hash, before, Tier.DEVICE)

    def seal_in_host(self, block: int, block_hash: bytes, log: EffectLog) -> None:
        """A HOST block that was leased holds this from now on, with one reference."""
        before = self.find(block_hash)
        self.host.seal(block, block_hash)
        log.records.append(BlockRecord(Tier.HOST, block, block_hash))
        log.change(block_hash, before, Tier.HOST if before is not Tier.DEVICE else before)

    def drop(self, pool: BlockPool, block: int, log: EffectLog, why: Departure = Departure.EVICTED) -> bytes:
        """Frees a block that nobody refers to; returns its hash. `why` is counted if it lies in no other tier."""
        block_hash = pool.hash_of(block)
        before = self.find(block_hash)
        pool.drop(block)
        after = self.find(block_hash)
        if pool is not self.disk:
            log.records.append(BlockRecord(pool.tier, block, None))
        log.change(block_hash, before, after)
        if after is None:
            self.departures[why] += 1
            if pool is self.device:
                self._gone.remember(block_hash, self._uses[block], 0)
        return block_hash

    def settle(self, host_block: int, log: EffectLog) -> None:
        """Frees a HOST block that nobody refers to and whose content lies in DEVICE too."""
        if self.host.is_idle(host_block) and self.device.find(self.host.hash_of(host_block)) is not None:
            self.drop(self.host, host_block, log)

    def make_room(self, pool: BlockPool, log: EffectLog) -> bool:
        """Has a block free in HOST or DISK, dropping the coldest where needed; False: all are in use."""
        if pool.free_count == 0:
            for block in pool.coldest(1):
                self.drop(pool, block, log)
        return pool.free_count > 0
