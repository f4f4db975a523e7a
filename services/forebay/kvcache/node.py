"""The KV memory of this node at work: the pure ledger, and all that its decisions make happen.

Everything here runs on the event loop's thread and without an await between a decision and its effects, so that an
operation, its copies and the numbers of its events are one step to everybody else. Knows no requests or statuses.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from forebay.errors import DrainingError, InvalidFieldError
from forebay.kv.attachments import WorkerProcess
from forebay.kv.effect_log import EffectLog
from forebay.kv.effects import Effects, IndexEvent, Revoked, Shortage
from forebay.kv.grant import Grant, Renewal, Sealed, SealEntry, TakeOver
from forebay.kv.lease import Right
from forebay.kv.ledger import BlockLedger
from forebay.kv.ledger_stats import LedgerStats
from forebay.kv.pins import Pins
from forebay.kv.tier import TIERS, Tier
from forebay.kv.tiered_store import TieredStore
from forebay.kvcache.carrier import Carrier
from forebay.kvcache.digests import Place
from forebay.kvcache.followers import SequenceFollowers
from forebay.kvcache.node_blocks import NodeBlocks

_log = logging.getLogger(__name__)

News = asyncio.Queue[Revoked | Shortage | None]
"""What an attachment is to be told; None: the service ends it."""


class KvEventSink(Protocol):
    """Takes changes of the index away to whoever follows it. Must neither block nor raise."""

    def publish(self, first_event_number: int, events: Sequence[IndexEvent]) -> None:
        """`events[i]` has number first_event_number + i; numbers come without holes, from 1."""
        ...


@dataclass(frozen=True, slots=True)
class IndexSnapshot:
    """All findable blocks, with the number of the last event that is contained."""

    last_event_number: int
    hashes: dict[Tier, list[bytes]]


class KvNode:
    """Rights to the node's blocks, carried out.

    blocks: what the service does with blocks itself; followers: told whenever a sequence seals or changes hands.
    """

    def __init__(
        self,
        ledger: BlockLedger,
        store: TieredStore,
        carrier: Carrier,
        events: KvEventSink,
        clock: Callable[[], float],
        is_alive: Callable[[WorkerProcess], bool],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._carrier = carrier
        self._events = events
        self._clock = clock
        self._is_alive = is_alive
        self._pins = Pins(store.traffic, store.capacity)
        self._news: dict[int, News] = {}
        self._next_asked = 0
        self.blocks = NodeBlocks(store, self._carry_out)
        self.followers = SequenceFollowers()
        self._last_event_number = 0
        self._is_draining = False
        self._failure: Exception | None = None

    def restore(self, tier: Tier, blocks: Iterable[tuple[int, bytes]]) -> None:
        """At start: blocks that hold what an earlier service had sealed, by index and hash."""
        log = EffectLog()
        self._store.restore(tier, blocks, log)
        self._carry_out(log.effects())

    def attach(self, process: WorkerProcess) -> tuple[int, News]:
        """Lets a worker in; returns its attachment id and where its news come.

        Errors: DuplicateWorkerError, DrainingError, InvalidFieldError when the process cannot be watched from here.
        """
        self.refuse_if_draining()
        if not self._is_alive(process):
            # Fencing rests on seeing the process: one in another pid namespace would be taken for dead while it writes.
            raise InvalidFieldError(
                "no such process here; worker and KV-cache service must share the pid namespace", field="pid"
            )
        self._look_for_dead()
        attachment_id = self._ledger.attach(process)
        news = self._news[attachment_id] = News()
        return attachment_id, news

    def tell_short(self, attachment_id: int, priority: int) -> None:
        """This worker was refused blocks for something so urgent: the next of the others hears of it."""
        others = [other for other in self._news if other != attachment_id]
        if others:
            self._next_asked += 1
            news = self._news[others[self._next_asked % len(others)]]
            if news.empty():  # else it has not even heard the last
                news.put_nowait(Shortage(priority))

    def detach(self, attachment_id: int, process: WorkerProcess) -> None:
        """The attachment's stream has ended, for whatever reason."""
        self._news.pop(attachment_id, None)
        self._ledger.detach(attachment_id, self._clock(), process_is_gone=not self._is_alive(process))
        self.followers.tell_all()

    def pin(self, block_hashes: Sequence[bytes], ttl_s: float) -> list[bytes]:
        """As Pins.pin, for so long from now."""
        return self._pins.pin(block_hashes, self._clock() + ttl_s)

    def unpin(self, block_hashes: Iterable[bytes] | None) -> int:
        """Ends the pins of these blocks, or all, before their time; returns how many."""
        log = EffectLog()
        ended_count = self._pins.unpin(list(self._pins) if block_hashes is None else block_hashes, log)
        self._carry_out(log.effects())
        return ended_count

    async def verify(self) -> tuple[int, int]:
        """Reads every block of the DISK tier and drops the damaged. Returns how many were read, and damaged.

        Errors: DiskFailedError, DrainingError.
        """
        disk, traffic, read_count, corrupt_count = self._carrier.disk, self._store.traffic, 0, 0
        for block_hash in self._store.hashes_on_disk() if disk is not None else ():
            held = traffic.hold_slot(block_hash)
            if disk is None or held is None:  # it was dropped meanwhile
                continue
            log, is_whole = EffectLog(), True
            try:
                is_whole = await disk.is_whole(held.block, block_hash)
                read_count += 1
            finally:
                if is_whole:
                    traffic.let_go([held], log)
                else:
                    traffic.discard(held, log)
                    corrupt_count += 1
                self._carry_out(log.effects())
        return read_count, corrupt_count

    @property
    def pinned_count(self) -> int:
        """Blocks that are pinned."""
        return len(self._pins)

    async def flush(self) -> int:
        """Removes all blocks that nobody refers to, from all tiers, also for services to come; returns how many."""
        log = EffectLog()
        removed_count = self._store.flush(log)
        self._carry_out(log.effects())
        if self._carrier.disk is not None:
            await self._carrier.disk.forget_all()
        return removed_count

    def begin(
        self,
        attachment_id: int,
        sequence_id: str,
        prefix_hashes: Sequence[bytes],
        block_count: int,
        tenant: str = "",
    ) -> Grant:
        """As BlockLedger.begin. Errors also: DrainingError."""
        self.refuse_if_draining()
        self._look_at_writer(sequence_id)
        grant = self._ledger.begin(attachment_id, sequence_id, prefix_hashes, block_count, self._clock(), tenant)
        damaged = self._carry_out(grant.effects)
        if not damaged:
            return grant
        # Nobody has seen the grant yet. The prefix ends before what is damaged, and is computed from there on.
        whole_count = min(grant.block_ids.index(block) for _, block in damaged)
        self.release(attachment_id, [(sequence_id, grant.epoch)])
        self.blocks.drop_damaged(damaged)
        return self.begin(attachment_id, sequence_id, prefix_hashes[:whole_count], block_count, tenant)

    def take_over(self, attachment_id: int, sequence_id: str, take_over: TakeOver) -> Grant:
        """As BlockLedger.take_over."""
        self._look_at_writer(sequence_id)
        grant = self._ledger.take_over(attachment_id, sequence_id, take_over, self._clock())
        self._carry_out(grant.effects)
        return grant

    def extend(self, attachment_id: int, sequence_id: str, epoch: int, block_count: int) -> Grant:
        """As BlockLedger.extend."""
        grant = self._ledger.extend(attachment_id, sequence_id, epoch, block_count, self._clock())
        self._carry_out(grant.effects)
        return grant

    def seal(self, attachment_id: int, entry: SealEntry) -> Sealed:
        """As BlockLedger.seal."""
        sealed = self._ledger.seal(attachment_id, entry, self._clock())
        self._carry_out(sealed.effects)
        self.followers.tell(entry.sequence_id)
        return sealed

    def note_request(self, sequence_id: str, epoch: int, request_number: int) -> None:
        """As BlockLedger.note_request."""
        self._ledger.note_request(sequence_id, epoch, request_number)

    def release(
        self,
        attachment_id: int,
        sequences: Iterable[tuple[str, int]],
        unheard: Iterable[tuple[str, int]] = (),
        parked: Iterable[tuple[str, int]] = (),
    ) -> int:
        """As BlockLedger.release, and release_unheard."""
        released_count = self._ledger.release(attachment_id, sequences)
        released_count += self._ledger.release(attachment_id, parked, is_parked=True)
        released_count += self._ledger.release_unheard(attachment_id, unheard)
        self.followers.tell_all()
        return released_count

    def renew(
        self, attachment_id: int, sequences: Iterable[tuple[str, int]], last_answer: int | None = None
    ) -> Renewal:
        """As BlockLedger.renew."""
        renewal = self._ledger.renew(attachment_id, sequences, self._clock(), last_answer)
        self.followers.tell_all()
        return renewal

    def find(self, block_hash: bytes) -> Tier | None:
        """Tier in which a sealed block is held."""
        return self._store.find(block_hash)

    def right_to(self, sequence_id: str) -> Right | None:
        """As BlockLedger.right_to."""
        return self._ledger.right_to(sequence_id)

    def snapshot(self) -> IndexSnapshot:
        """The index as of now."""
        return IndexSnapshot(self._last_event_number, {tier: self._store.hashes(tier) for tier in TIERS})

    def stats(self) -> LedgerStats:
        """Counts now, and totals since start."""
        return self._ledger.stats()

    @property
    def copied_bytes(self) -> int:
        """KV bytes copied between tiers since start."""
        return self._carrier.copied_bytes

    def tick(self) -> None:
        """Looks for dead workers and ends what ran out. To be called several times a second.

        Errors: what kept an earlier operation from being carried out.
        """
        if self._failure is not None:
            raise self._failure
        self._look_for_dead()
        self._carry_out(self._ledger.expire(self._clock()))
        log = EffectLog()
        self._pins.expire(self._clock(), log)
        self._store.free_ahead(log)
        self._carry_out(log.effects())
        self.followers.tell_all()

    def drain(self) -> None:
        """From now on refuses new workers, new sequences and new transfers."""
        self._is_draining = True

    def refuse_if_draining(self) -> None:
        """Errors: DrainingError."""
        if self._is_draining:
            raise DrainingError("this KV-cache service is stopping")

    def end_attachments(self) -> None:
        """Ends every attachment's stream."""
        for news in self._news.values():
            news.put_nowait(None)

    def _carry_out(self, effects: Effects) -> tuple[Place, ...]:
        """As Carrier.carry_out."""
        try:
            damaged = self._carrier.carry_out(effects)
        except Exception as error:
            # Blocks now count as sealed whose bytes are not there: nobody may find them, and the service must end.
            self._failure = error
            self.drain()
            raise
        if effects.events:
            self._events.publish(self._last_event_number + 1, effects.events)
            self._last_event_number += len(effects.events)
        for revoked in effects.revoked:
            if revoked.attachment_id in self._news:
                self._news[revoked.attachment_id].put_nowait(revoked)
        for fence in effects.overdue:
            _log.warning(
                "worker %s (pid %d) lost its right to %d KV blocks, but has not said that it writes to them no more;"
                " they stay out of use until it does, or ends",
                fence.process.worker_id,
                fence.process.pid,
                fence.block_count,
            )
        return damaged

    def _look_at_writer(self, sequence_id: str) -> None:
        """A worker killed a moment ago must not keep its sequence from the next until somebody looks."""
        writer = self._ledger.writer_of(sequence_id)
        if writer is not None and not self._is_alive(writer[1]):
            self._ledger.detach(writer[0], self._clock(), process_is_gone=True)

    def _look_for_dead(self) -> None:
        for attachment_id, process in self._ledger.processes():
            if not self._is_alive(process):
                self._ledger.detach(attachment_id, self._clock(), process_is_gone=True)
