"""The ledger of KV rights on one node: attachments, leases, epochs, fencing. Decides; others copy, publish and revoke.

Knows time only as an argument (`now_s`, any monotonic clock), workers only by what they say and by whether their
process is gone, content only through the tiered store. An operation that raises has granted and sealed nothing.

The rule that everything here serves: a block is never granted while an older writer could still write it. A writer has
stopped when it says so (releases, hands over, or renews without naming the sequence) or when its process is gone. Time
proves nothing: a process that was stopped in mid-step writes when it goes on (see docs/adr/005).

Memory: bounded by the blocks (see pool) and by one record per sequence that holds at least one block.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from forebay.errors import (
    DuplicateRequestError,
    ForebayError,
    InvalidFieldError,
    StaleEpochError,
    UnknownSequenceError,
    WriterActiveError,
)
from forebay.kv.attachments import AttachmentRecord, Attachments, WorkerProcess
from forebay.kv.departure import Departure
from forebay.kv.effect_log import EffectLog
from forebay.kv.effects import Effects, OverdueFence, Revoked
from forebay.kv.grant import Grant, Renewal, Sealed, SealEntry, TakeOver
from forebay.kv.lease import Right, SequenceLease
from forebay.kv.ledger_stats import LedgerStats
from forebay.kv.tenant_quota import TenantQuota
from forebay.kv.tiered_store import TieredStore

DEFAULT_OFFER_S = 0.7
RETRY_TAKE_OVER_S = 0.1
"""A writer that has just died is seen to be gone within about this time."""


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """Times and limits.

    A sequence that was handed over, or whose owner's process is gone, waits for its taker no longer than `offer_s`: a
    request that was cancelled or lost must hold nothing for longer than a second. A late taker finds the sealed blocks
    in the cache. A fence that is older than `grace_s` is reported; nothing else follows from its age.
    Numbers (epochs, attachment ids) begin at `first_number`: a restarted service passes a greater one than it ever
    reached, so that no number means two things.
    tenant_block_count: DEVICE blocks of one tenant's sequences beyond which no other of them begins; None: any.
    """

    lease_s: float
    grace_s: float
    first_number: int = 1
    offer_s: float = DEFAULT_OFFER_S
    tenant_block_count: int | None = None


class BlockLedger:
    """Rights to all KV blocks of one node."""

    def __init__(self, store: TieredStore, settings: LedgerSettings) -> None:
        self._settings = settings
        self._store = store
        self._attachments = Attachments()
        self._leases: dict[str, SequenceLease] = {}
        self._quota = TenantQuota(settings.tenant_block_count)
        self._last_number = settings.first_number - 1
        self._prefix_blocks_asked = self._prefix_blocks_found = self._take_overs = 0

    def attach(self, process: WorkerProcess) -> int:
        """Lets a worker in; returns its attachment id.

        Errors: DuplicateWorkerError while another attachment of this worker id is open.
        """
        return self._attachments.add(self._next_number(), process)

    def detach(self, attachment_id: int, now_s: float, *, process_is_gone: bool) -> None:
        """Ends an attachment. Its sequences can be taken over once the process is gone: say so, even if later.

        Unknown attachments are ignored.
        """
        for sequence_id in self._attachments.close(attachment_id):
            lease = self._leases[sequence_id]
            if lease.right is Right.OWNED and not process_is_gone:
                self._fence(lease)
            elif lease.right is not Right.ORPHANED and process_is_gone:
                lease.right = Right.ORPHANED
                lease.ends_at_s = now_s + self._settings.offer_s

    def processes(self) -> list[tuple[int, WorkerProcess]]:
        """Attachments whose process matters: open ones, and closed ones that may still write."""
        return self._attachments.processes()

    def writer_of(self, sequence_id: str) -> tuple[int, WorkerProcess] | None:
        """The attachment and process that may write a sequence's blocks."""
        lease = self._leases.get(sequence_id)
        if lease is None or lease.right not in (Right.OWNED, Right.FENCED):
            return None
        return lease.attachment_id, self._attachments.process(lease.attachment_id)

    def right_to(self, sequence_id: str) -> Right | None:
        """Who may write a sequence's blocks; None: there is no such sequence (any more)."""
        lease = self._leases.get(sequence_id)
        return None if lease is None else lease.right

    def begin(
        self,
        attachment_id: int,
        sequence_id: str,
        prefix_hashes: Sequence[bytes],
        block_count: int,
        now_s: float,
        tenant: str = "",
    ) -> Grant:
        """Grants blocks to a new sequence: the longest held run of its prefix, and new ones up to `block_count`.

        A sequence of the same id whose writer is gone is released first.
        Errors: NotAttachedError, InvalidFieldError, DuplicateRequestError, WriterActiveError, KvExhaustedError.
        """
        attachment = self._attachments.open(attachment_id)
        if not 1 <= block_count <= self._store.capacity:
            raise InvalidFieldError(
                f"a sequence takes 1..{self._store.capacity} blocks of the DEVICE tier, not {block_count}",
                field="new_sequence.block_count",
            )
        if len(prefix_hashes) > block_count:
            raise InvalidFieldError(
                f"{len(prefix_hashes)} prefix hashes are more than the {block_count} blocks wanted",
                field="new_sequence.prefix_hashes",
            )
        if len(set(prefix_hashes)) < len(prefix_hashes):
            raise InvalidFieldError("a prefix hash comes twice", field="new_sequence.prefix_hashes")
        held = self._leases.get(sequence_id)
        if held is not None:
            self._supersede(held)
        self._quota.check(tenant, block_count)
        log = EffectLog()
        reserved = self._store.reserve(prefix_hashes, block_count, log)
        self._quota.take(tenant, block_count)
        self._prefix_blocks_asked += len(prefix_hashes)
        self._prefix_blocks_found += reserved.cached_count
        lease = SequenceLease(
            sequence_id=sequence_id,
            attachment_id=attachment_id,
            epoch=self._next_number(),
            granted_at_s=now_s,
            ends_at_s=now_s + self._settings.lease_s,
            block_ids=reserved.block_ids,
            hashes=list(prefix_hashes[: reserved.cached_count]),
            tenant=tenant,
        )
        self._leases[sequence_id] = lease
        attachment.sequence_ids.add(sequence_id)
        return self._grant(lease, log, reserved.promoted_count)

    def take_over(
        self,
        attachment_id: int,
        sequence_id: str,
        take_over: TakeOver,
        now_s: float,
    ) -> Grant:
        """Grants a sequence that was handed over, or whose owner's process is gone.

        Idempotent for the same attachment and epoch.
        Errors: NotAttachedError, UnknownSequenceError, StaleEpochError, WriterActiveError, KvExhaustedError.
        """
        attachment = self._attachments.open(attachment_id)
        lease, epoch = self._known(sequence_id), take_over.epoch
        if not lease.is_known_as(epoch):
            raise StaleEpochError("the sequence has changed hands since", sequence_id=sequence_id)
        is_owner = lease.right is Right.OWNED and lease.attachment_id == attachment_id
        if not is_owner and self._has_other_writer(lease, attachment):
            raise _writer_active(lease)
        log = EffectLog()
        sealed_count = None if is_owner else take_over.sealed_count  # asked again, what it has sealed since stays
        self._renew_table(lease, take_over.block_count or 0, sealed_count, log)
        lease.ends_at_s = now_s + self._settings.lease_s
        if not is_owner:
            self._attachments.disown(lease.attachment_id, lease.sequence_id)
            lease.attachment_id, lease.right, lease.is_overdue = attachment_id, Right.OWNED, False
            lease.taken_with_epoch, lease.handed_over_epoch, lease.request_number = epoch, None, None
            lease.epoch = self._next_number()
            lease.granted_at_s = now_s
            attachment.sequence_ids.add(sequence_id)
            self._take_overs += 1
        return self._grant(lease, log)

    def extend(self, attachment_id: int, sequence_id: str, epoch: int, block_count: int, now_s: float) -> Grant:
        """Grants `block_count` further blocks to a sequence's owner; the epoch stays.

        Errors: NotAttachedError, InvalidFieldError, UnknownSequenceError, StaleEpochError, KvExhaustedError.
        """
        self._attachments.open(attachment_id)
        lease = self._owned(attachment_id, sequence_id, epoch)
        if block_count < 1:
            raise InvalidFieldError("at least one block must be wanted", field="extend.block_count")
        log = EffectLog()
        self._lengthen(lease, block_count, log)
        lease.ends_at_s = now_s + self._settings.lease_s
        return self._grant(lease, log)

    def seal(self, attachment_id: int, entry: SealEntry, now_s: float) -> Sealed:
        """Makes blocks immutable and findable; a hand-over leaves the sequence to whoever takes it over.

        Repeating an entry is a no-op with the same answer.
        Errors: NotAttachedError, UnknownSequenceError, StaleEpochError, InvalidFieldError.
        """
        self._attachments.open(attachment_id)
        lease = self._known(entry.sequence_id)
        if entry.hand_over and (lease.attachment_id, lease.handed_over_epoch) == (attachment_id, entry.epoch):
            return Sealed(lease.epoch)
        lease = self._owned(attachment_id, entry.sequence_id, entry.epoch)
        sealed_count, end = len(lease.hashes), entry.first_block_index + len(entry.block_hashes)
        if not 0 <= entry.first_block_index <= sealed_count or end > len(lease.block_ids):
            raise InvalidFieldError(
                f"blocks {entry.first_block_index}..{end} leave a gap after the {sealed_count} sealed ones, or pass the"
                f" table's end at {len(lease.block_ids)}",
                field="entries.first_block_index",
            )
        known = lease.hashes[entry.first_block_index : end]
        new_hashes = entry.block_hashes[sealed_count - entry.first_block_index :]
        if list(entry.block_hashes[: len(known)]) != known:
            raise InvalidFieldError(
                "a block of this entry is sealed already, with another hash", field="entries.block_hashes"
            )
        log = EffectLog()
        self._store.seal(lease.block_ids[sealed_count : sealed_count + len(new_hashes)], new_hashes, log)
        lease.hashes += new_hashes
        if entry.hand_over:
            self._attachments.disown(lease.attachment_id, lease.sequence_id)
            lease.right, lease.handed_over_epoch = Right.OFFERED, lease.epoch
            lease.taken_with_epoch = None
            lease.epoch = self._next_number()
            lease.ends_at_s = now_s + self._settings.offer_s
        return Sealed(lease.epoch, log.effects())

    def release(self, attachment_id: int, sequences: Iterable[tuple[str, int]], *, is_parked: bool = False) -> int:
        """Gives up sequences, named with their epochs; returns how many. Unknown ones and stale epochs are ignored.

        A sequence that nobody may write (handed over, or its owner gone) can be released by any attachment that knows
        its epoch: so a request cancelled between hand-over and take-over holds nothing.
        is_parked: see TieredStore.give_back. Errors: NotAttachedError.
        """
        attachment = self._attachments.open(attachment_id)
        released_count = 0
        for sequence_id, epoch in sequences:
            lease = self._leases.get(sequence_id)
            if lease is not None and lease.epoch == epoch and not self._has_other_writer(lease, attachment):
                self._release(lease, is_parked=is_parked)
                released_count += 1
        return released_count

    def note_request(self, sequence_id: str, epoch: int, request_number: int) -> None:
        """By which request the right of this epoch was granted: its owner's number, unique within the attachment."""
        lease = self._leases.get(sequence_id)
        if lease is not None and lease.epoch == epoch:
            is_first = lease.request_number in (None, request_number)
            lease.request_number = request_number if is_first else 0

    def release_unheard(self, attachment_id: int, requests: Iterable[tuple[str, int]]) -> int:
        """Gives up what was granted by these requests, whose answers their sender has not heard; returns how much.

        By request and not by sequence: what was granted since is not meant. Errors: NotAttachedError.
        """
        self._attachments.open(attachment_id)
        released_count = 0
        for sequence_id, request_number in requests:
            lease = self._leases.get(sequence_id)
            if (
                lease is not None
                and (lease.attachment_id, lease.request_number) == (attachment_id, request_number)
                and request_number
                and lease.right in (Right.OWNED, Right.FENCED)
            ):
                self._release(lease)
                released_count += 1
        return released_count

    def renew(
        self, attachment_id: int, sequences: Iterable[tuple[str, int]], now_s: float, last_answer: int | None = None
    ) -> Renewal:
        """Renews the leases of the sequences named: all whose blocks the worker may still write, lost ones included.

        `last_answer` is the number of the last answer the worker had on this attachment. It tells what the worker knew
        when it wrote the names: a fence older than that, unnamed, has no writer any more, and is released. An owned
        sequence that is not named runs out, and is then fenced, so that a grant whose answer was lost does not live for
        ever; but not before the grant is one lease old, since until then its answer may arrive and be used.
        Errors: NotAttachedError.
        """
        attachment = self._attachments.open(attachment_id)
        named = dict(sequences)
        self._release_unnamed(attachment, named.keys(), attachment_id if last_answer is None else last_answer)
        for sequence_id in attachment.sequence_ids:
            lease = self._leases[sequence_id]
            if lease.right is Right.OWNED and now_s - lease.granted_at_s < self._settings.lease_s:
                lease.ends_at_s = now_s + self._settings.lease_s
        lost: list[str] = []
        for sequence_id, epoch in named.items():
            try:
                lease = self._owned(attachment_id, sequence_id, epoch)
            except ForebayError:
                lost.append(sequence_id)
            else:
                lease.ends_at_s = now_s + self._settings.lease_s
        return Renewal(self._next_number(), tuple(lost))

    def expire(self, now_s: float) -> Effects:
        """Fences what is not renewed, and releases what waited for a taker. To be called a few times a second."""
        revoked: dict[int, list[str]] = {}
        overdue: Counter[WorkerProcess] = Counter()
        for lease in [lease for lease in self._leases.values() if lease.ends_at_s <= now_s]:
            if lease.right is Right.OWNED:
                revoked.setdefault(lease.attachment_id, []).append(lease.sequence_id)
                self._fence(lease)
            elif lease.right is not Right.FENCED:
                self._release(lease)
            elif not lease.is_overdue:
                lease.is_overdue = True
                overdue[self._attachments.process(lease.attachment_id)] += len(lease.block_ids)
        return Effects(
            revoked=tuple(Revoked(owner, tuple(ids)) for owner, ids in revoked.items()),
            overdue=tuple(OverdueFence(process, block_count) for process, block_count in overdue.items()),
        )

    def stats(self) -> LedgerStats:
        """Counts now, and totals since start."""
        departures = self._store.departures
        return LedgerStats(
            tiers=self._store.counts(),
            sequences=len(self._leases),
            attachments=self._attachments.open_count,
            prefix_blocks_asked=self._prefix_blocks_asked,
            prefix_blocks_found=self._prefix_blocks_found,
            evicted_blocks=departures[Departure.EVICTED],
            flushed_blocks=departures[Departure.FLUSHED],
            lost_blocks=departures[Departure.LOST],
            take_overs=self._take_overs,
        )

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _known(self, sequence_id: str) -> SequenceLease:
        lease = self._leases.get(sequence_id)
        if lease is None:
            raise UnknownSequenceError("no such sequence: released, or its lease ran out", sequence_id=sequence_id)
        return lease

    def _owned(self, attachment_id: int, sequence_id: str, epoch: int) -> SequenceLease:
        lease = self._known(sequence_id)
        if lease.right is not Right.OWNED or lease.attachment_id != attachment_id or lease.epoch != epoch:
            raise StaleEpochError("the sequence is not this worker's any more", sequence_id=sequence_id)
        return lease

    def _has_other_writer(self, lease: SequenceLease, attachment: AttachmentRecord) -> bool:
        if lease.right in (Right.ORPHANED, Right.OFFERED) or lease.attachment_id == attachment.attachment_id:
            return False
        # A worker that attached again after a broken connection may go on with what it alone can write.
        is_own_fence = lease.right is Right.FENCED
        return not (is_own_fence and self._attachments.process(lease.attachment_id) == attachment.process)

    def _renew_table(self, lease: SequenceLease, block_count: int, sealed_count: int | None, log: EffectLog) -> None:
        """Lengthens the table to `block_count`, and puts other blocks in place of those sealed beyond `sealed_count`.

        All or nothing. Errors: KvExhaustedError.
        """
        missing_count = max(0, block_count - len(lease.block_ids))
        surplus = [] if sealed_count is None else lease.block_ids[sealed_count : len(lease.hashes)]
        if not missing_count and not surplus:
            return
        fresh = self._store.lease(missing_count + len(surplus), log)
        if surplus:
            self._store.copy(surplus[0], fresh[0], log)
            self._store.give_back(surplus, len(surplus))
            lease.block_ids[sealed_count : len(lease.hashes)] = fresh[: len(surplus)]
            del lease.hashes[sealed_count:]
        lease.block_ids += fresh[len(surplus) :]
        self._quota.take(lease.tenant, missing_count)

    def _lengthen(self, lease: SequenceLease, count: int, log: EffectLog) -> None:
        if count > 0:
            lease.block_ids += self._store.lease(count, log)
            self._quota.take(lease.tenant, count)

    def _grant(self, lease: SequenceLease, log: EffectLog, promoted_count: int = 0) -> Grant:
        return Grant(lease.epoch, tuple(lease.block_ids), len(lease.hashes), promoted_count, log.effects())

    def _fence(self, lease: SequenceLease) -> None:
        lease.right, lease.fence_number = Right.FENCED, self._next_number()
        lease.ends_at_s += self._settings.grace_s

    def _release_unnamed(self, attachment: AttachmentRecord, named: Collection[str], known_number: int) -> None:
        """Releases what this worker's process let go of: fences raised before `known_number` that it does not name.

        By id, not epoch: a worker that may still write under an older epoch must not lose the blocks either.
        """
        for sequence_id in self._attachments.sequences_of(attachment.process):
            lease = self._leases[sequence_id]
            if lease.right is Right.FENCED and lease.fence_number < known_number and sequence_id not in named:
                self._release(lease)

    def _supersede(self, lease: SequenceLease) -> None:
        if lease.right is Right.ORPHANED:
            self._release(lease)
        elif lease.right is Right.FENCED:
            raise _writer_active(lease)
        else:
            raise DuplicateRequestError("a sequence with this id is active", sequence_id=lease.sequence_id)

    def _release(self, lease: SequenceLease, *, is_parked: bool = False) -> None:
        del self._leases[lease.sequence_id]
        self._store.give_back(lease.block_ids, len(lease.hashes), is_parked=is_parked)
        self._quota.give_back(lease.tenant, len(lease.block_ids))
        self._attachments.disown(lease.attachment_id, lease.sequence_id)


def _writer_active(lease: SequenceLease) -> WriterActiveError:
    return WriterActiveError(
        "another worker may still write this sequence's blocks",
        retry_after_s=RETRY_TAKE_OVER_S,
        sequence_id=lease.sequence_id,
    )
