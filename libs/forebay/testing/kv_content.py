"""Memory, disk and checkpoint of a modelled node: carries effects out, may be killed in between, and checks.

What lies in a block is the hash that it should have, or garbage. Reads and writes of the disk are under way until the
test ends them; the service may be killed at any step of what it carries out. Knows no leases and no workers.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from forebay.errors import KvExhaustedError
from forebay.kv.block_traffic import Fetch, Held
from forebay.kv.effect_log import EffectLog
from forebay.kv.effects import CopyBlock, Effects, Moved, ReadSlot, Removed, Stored, WriteSlot
from forebay.kv.pins import Pins
from forebay.kv.tier import TIERS, Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore

GARBAGE = b"half-written KV"
MEMORY = (Tier.DEVICE, Tier.HOST)


class ServiceKilledError(Exception):
    """The service died in the middle of an operation."""


@dataclass(slots=True)
class OpenSequence:
    """A sequence that computes; its first `sealed_count` blocks are sealed."""

    hashes: list[bytes]
    block_ids: list[int]
    sealed_count: int


class ModelContent:
    """Content of all tiers. Without `copies` it does not carry copies out, without `digests` it believes the disk."""

    def __init__(
        self,
        settings: StoreSettings,
        store_type: Callable[[StoreSettings], TieredStore] = TieredStore,
        *,
        copies: bool = True,
        digests: bool = True,
    ) -> None:
        self.settings, self.store_type = settings, store_type
        self.does_copy, self.does_verify = copies, digests
        counts = (settings.device_block_count, settings.host_block_count, settings.disk_block_count)
        self.capacities = dict(zip(TIERS, counts, strict=True))
        self.blocks = {tier: [b""] * count for tier, count in self.capacities.items()}
        self.noted: dict[tuple[Tier, int], bytes] = {}  # the checkpoint
        self.slots: dict[int, bytes] = {}  # the disk's own index
        self.steps_to_live: int | None = None
        self.reached: Counter[str] = Counter()  # what happened, so that tests can see that it did
        self.start()

    def start(self) -> None:
        """A service begins, with nothing but what the one before it left."""
        self.store = self.store_type(self.settings)
        self.pins = Pins(self.store.traffic, self.settings.device_block_count)
        self.index: dict[bytes, Tier] = {}  # as a reader of the events sees it
        self.writes: list[WriteSlot] = []
        self.reads: list[ReadSlot] = []
        self.fills: list[tuple[bytes, int]] = []  # from another node
        self.sequences: list[OpenSequence] = []
        self.holds: list[Held] = []
        self.fetches: list[Fetch] = []
        log = EffectLog()
        for tier in MEMORY:
            kept = [(index, block_hash) for (its, index), block_hash in self.noted.items() if its is tier]
            self.store.restore(tier, kept, log)
        self.store.restore(Tier.DISK, self.slots.items(), log)
        self.noted.clear()
        self.carry_out(log.effects())
        self.reached["restored"] += len(self.index)

    # Carrying out.

    def carry_out(self, effects: Effects) -> None:
        """Everything in the order that a service keeps to; ServiceKilledError when its time has come."""
        for step in self._steps(effects):
            if self.steps_to_live is not None:
                self.steps_to_live -= 1
                if self.steps_to_live < 0:
                    self.steps_to_live = None
                    self.reached["killed while carrying out"] += 1
                    raise ServiceKilledError
            step()

    def _steps(self, effects: Effects) -> Iterator[Callable[[], None]]:
        for record in effects.records:
            yield lambda record=record: self.noted.pop((record.tier, record.index), None)  # type: ignore[misc]
        for copy in effects.copies if self.does_copy else ():
            yield from self._copying(copy)
        last = {(record.tier, record.index): record.block_hash for record in effects.records}
        for place, block_hash in last.items():
            if block_hash is not None:
                yield lambda place=place, block_hash=block_hash: self.noted.update({place: block_hash})  # type: ignore[misc]
        for write in effects.writes:
            yield lambda write=write: self._begin_write(write)  # type: ignore[misc]
        for read in effects.reads:
            yield lambda read=read: self._begin_read(read)  # type: ignore[misc]
        yield lambda: self._tell(effects)

    def _copying(self, copy: CopyBlock) -> Iterator[Callable[[], None]]:
        target = self.blocks[copy.to_tier]

        def half() -> None:
            target[copy.to_index] = GARBAGE

        def whole() -> None:
            target[copy.to_index] = source

        source = self.blocks[copy.from_tier][copy.from_index]
        yield half
        yield whole

    def _begin_write(self, write: WriteSlot) -> None:
        self.slots.pop(write.slot, None)
        self.blocks[Tier.DISK][write.slot] = GARBAGE
        self.writes.append(write)

    def _begin_read(self, read: ReadSlot) -> None:
        self.blocks[Tier.HOST][read.host_index] = GARBAGE
        self.reads.append(read)

    def _tell(self, effects: Effects) -> None:
        for event in effects.events:
            for block_hash in event.hashes:
                match event:
                    case Stored(tier):
                        assert block_hash not in self.index
                        self.index[block_hash] = tier
                    case Removed(tier):
                        assert self.index.pop(block_hash) is tier
                    case Moved(from_tier, to_tier):
                        assert self.index[block_hash] is from_tier
                        self.index[block_hash] = to_tier

    # What may happen besides what sequences do. Each takes integers that choose.

    def end_write(self, a: int, b: int) -> None:
        if self.writes:
            write, is_good, log = self.writes.pop(a % len(self.writes)), b % 8 > 0, EffectLog()
            if is_good:
                self.blocks[Tier.DISK][write.slot] = self.blocks[Tier.HOST][write.host_index]
                self.slots[write.slot] = write.block_hash
                self.reached["written to disk"] += 1
            self.store.traffic.finish_write(write.block_hash, log, is_good=is_good)
            self.carry_out(log.effects())

    def end_read(self, a: int, b: int) -> None:
        if self.reads:
            read, log = self.reads.pop(a % len(self.reads)), EffectLog()
            found = self.blocks[Tier.DISK][read.slot]
            is_whole = found == read.block_hash or not self.does_verify
            is_good = is_whole and b % 8 > 0  # the disk may also give an error
            if is_good:
                self.blocks[Tier.HOST][read.host_index] = found
                self.reached["read from disk"] += 1
            if not is_whole:
                self.reached["corrupt on disk"] += 1
                self.slots.pop(read.slot, None)
            self.store.traffic.finish_fill(read.block_hash, log, is_good=is_good, is_source_bad=not is_whole)
            self.carry_out(log.effects())

    def flip(self, a: int) -> None:
        """A bit of a disk file turns over."""
        if self.capacities[Tier.DISK]:
            self.blocks[Tier.DISK][a % self.capacities[Tier.DISK]] = GARBAGE

    def switch_disk_off(self) -> None:
        log = EffectLog()
        self.store.traffic.switch_disk_off(log)
        self.carry_out(log.effects())

    def fetch(self, hashes: list[bytes]) -> None:
        log = EffectLog()
        self.fetches.append(self.store.traffic.fetch(hashes, log))
        self.carry_out(log.effects())

    def end_fetch(self, a: int) -> None:
        if self.fetches:
            log = EffectLog()
            self.store.traffic.abandon(self.fetches.pop(a % len(self.fetches)), log)
            self.carry_out(log.effects())

    def begin_fill(self, block_hash: bytes) -> None:
        log = EffectLog()
        block = self.store.open_fill(block_hash, log)
        self.carry_out(log.effects())
        if block is not None:
            self.blocks[Tier.DEVICE][block] = GARBAGE
            self.fills.append((block_hash, block))

    def end_fill(self, a: int, b: int) -> None:
        if self.fills:
            (block_hash, block), is_good, log = self.fills.pop(a % len(self.fills)), b % 4 > 0, EffectLog()
            if is_good:
                self.blocks[Tier.DEVICE][block] = block_hash
                self.reached["pulled"] += 1
            self.store.traffic.finish_fill(block_hash, log, is_good=is_good)
            self.carry_out(log.effects())

    def hold(self, block_hash: bytes) -> None:
        held = self.store.traffic.hold(block_hash)
        if held is not None:
            self.holds.append(held)

    def let_go(self, a: int) -> None:
        if self.holds:
            log = EffectLog()
            self.store.traffic.let_go([self.holds.pop(a % len(self.holds))], log)
            self.carry_out(log.effects())

    def pin(self, hashes: list[bytes], until_s: float) -> None:
        try:
            missing = self.pins.pin(hashes, until_s)
        except KvExhaustedError:
            return
        assert all(self.store.find(one) is None for one in missing)

    def expire_pins(self, now_s: float) -> None:
        log = EffectLog()
        self.pins.expire(now_s, log)
        self.carry_out(log.effects())

    def free_ahead(self) -> None:
        log = EffectLog()
        self.store.free_ahead(log)
        self.carry_out(log.effects())

    def flush(self) -> None:
        log = EffectLog()
        self.store.flush(log)
        self.carry_out(log.effects())

    def end(self) -> None:
        """Everything under way comes to an end."""
        while self.reads:
            self.end_read(0, 1)
        while self.writes:
            self.end_write(0, 1)
        while self.fills:
            self.end_fill(0, 1)
        while self.fetches:
            assert not self.fetches[0].awaited, "a fetch waits for nothing"
            self.end_fetch(0)
        while self.holds:
            self.let_go(0)
        while self.sequences:
            self.close_sequence(0)
        self.expire_pins(float("inf"))

    # Sequences, with nobody who could lose a right: the ledger's model has those.

    def open_sequence(self, hashes: list[bytes], more_blocks: int) -> None:
        """Finds what is held of a prompt and takes blocks for the rest, and for some tokens after it."""
        log = EffectLog()
        try:
            reserved = self.store.reserve(hashes, len(hashes) + more_blocks, log)
        except KvExhaustedError:
            return
        self.carry_out(log.effects())
        self.sequences.append(OpenSequence(hashes, reserved.block_ids, reserved.cached_count))
        self.reached["found"] += reserved.cached_count
        self.reached["promoted"] += reserved.promoted_count

    def compute(self, a: int, count: int) -> None:
        """Writes and seals some of a sequence's blocks."""
        if self.sequences:
            one, log = self.sequences[a % len(self.sequences)], EffectLog()
            end = min(one.sealed_count + count, len(one.hashes))
            blocks, hashes = one.block_ids[one.sealed_count : end], one.hashes[one.sealed_count : end]
            for block, block_hash in zip(blocks, hashes, strict=True):
                self.blocks[Tier.DEVICE][block] = block_hash
            self.store.seal(blocks, hashes, log)
            one.sealed_count = end
            self.carry_out(log.effects())

    def close_sequence(self, a: int) -> None:
        if self.sequences:
            one = self.sequences.pop(a % len(self.sequences))
            self.store.give_back(one.block_ids, one.sealed_count)

    # What must hold.

    def written_by_service(self, tier: Tier) -> set[int]:
        """Blocks of a tier that the service is writing now."""
        return {
            Tier.DEVICE: {block for _, block in self.fills},
            Tier.HOST: {read.host_index for read in self.reads},
            Tier.DISK: {write.slot for write in self.writes},
        }[tier]

    def check(self) -> None:
        counts = {one.tier: one for one in self.store.counts()}
        for tier, capacity in self.capacities.items():
            if tier in counts or capacity:
                one = counts[tier]
                assert one.free + one.leased + one.sealed == one.capacity == capacity
                assert 0 <= one.referenced <= one.sealed
        for tier in (Tier.HOST, Tier.DISK):
            assert tier not in counts or counts[tier].leased == len(self.written_by_service(tier))
        assert self.index == {block_hash: tier for tier in TIERS for block_hash in self.store.hashes(tier)}
        for open_one in self.sequences:
            sealed = [self.blocks[Tier.DEVICE][block] for block in open_one.block_ids[: open_one.sealed_count]]
            assert sealed == open_one.hashes[: open_one.sealed_count], "a sequence's block holds something else"
        for held in (*self.holds, *(one for fetch in self.fetches for one in fetch.held)):
            self._check_kept(held)
        for write in self.writes:
            assert self.blocks[Tier.HOST][write.host_index] == write.block_hash, "what is written has changed"
        for (tier, index), block_hash in self.noted.items():
            assert self.blocks[tier][index] == block_hash, "the checkpoint tells what is not there"
        noted = {(tier, block_hash) for (tier, _), block_hash in self.noted.items()}
        assert noted >= {(tier, block_hash) for tier in MEMORY for block_hash in self.store.hashes(tier)}

    def _check_kept(self, held: Held) -> None:
        if held.tier is not Tier.DISK:
            assert self.blocks[held.tier][held.block] == held.block_hash, "a held block was evicted"
        assert self.store.find(held.block_hash) is not None
