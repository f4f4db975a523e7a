"""Rights of sequences, one story each. The random interleavings are in test_kv_rules."""

import pytest

from forebay.errors import (
    DuplicateRequestError,
    InvalidFieldError,
    KvExhaustedError,
    NotAttachedError,
    StaleEpochError,
    TenantQuotaError,
    UnknownSequenceError,
    WriterActiveError,
)
from forebay.kv.attachments import WorkerProcess
from forebay.kv.effects import CopyBlock, OverdueFence, Revoked, Stored
from forebay.kv.grant import Grant, SealEntry, TakeOver
from forebay.kv.lease import Right
from forebay.kv.ledger import BlockLedger, LedgerSettings
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore

LEASE_S, GRACE_S, OFFER_S = 10.0, 2.0, 0.5
HASHES = [bytes([number]) * 16 for number in range(8)]


class Story:
    """Two attached workers and a ledger of eight blocks."""

    def __init__(self) -> None:
        self.store = TieredStore(StoreSettings(8))
        self.ledger = BlockLedger(self.store, LedgerSettings(LEASE_S, GRACE_S, first_number=100, offer_s=OFFER_S))
        self.first, self.second = (self.ledger.attach(WorkerProcess(name, 7, 1)) for name in ("first", "second"))

    def begin(self, block_count: int = 3, prefix: int = 0) -> Grant:
        return self.ledger.begin(self.first, "s", HASHES[:prefix], block_count, 0.0)

    def leased(self) -> int:
        return self.ledger.stats().tiers[0].leased


@pytest.fixture
def story() -> Story:
    return Story()


def test_numbers_begin_where_told(story: Story) -> None:
    assert (story.first, story.second, story.begin().epoch) == (100, 101, 102)


def test_sealed_blocks_become_cache_and_are_found_in_order(story: Story) -> None:
    grant = story.begin()
    sealed = story.ledger.seal(story.first, SealEntry("s", grant.epoch, 0, HASHES[:2]), 0.0)
    assert sealed.effects.events == (Stored(Tier.DEVICE, tuple(HASHES[:2])),)
    assert story.ledger.release(story.first, [("s", grant.epoch)]) == 1
    again = story.begin(block_count=3, prefix=3)
    assert (again.block_ids[:2], again.cached_block_count) == (grant.block_ids[:2], 2)


def test_two_sequences_that_seal_the_same_content_keep_their_tables(story: Story) -> None:
    first = story.begin(1)
    second = story.ledger.begin(story.second, "t", [], 1, 0.0)
    story.ledger.seal(story.first, SealEntry("s", first.epoch, 0, HASHES[:1]), 0.0)
    duplicate = story.ledger.seal(story.second, SealEntry("t", second.epoch, 0, HASHES[:1]), 0.0)
    assert duplicate.effects.events == ()
    assert story.ledger.stats().tiers[0].sealed == 2
    story.ledger.release(story.second, [("t", second.epoch)])
    assert story.ledger.stats().tiers[0].free == 7
    assert story.store.find(HASHES[0]) is Tier.DEVICE


def test_dead_owner_gives_way_at_once(story: Story) -> None:
    epoch = story.begin().epoch
    story.ledger.detach(story.first, 0.0, process_is_gone=True)
    taken = story.ledger.take_over(story.second, "s", TakeOver(epoch), 1.0)
    assert taken.epoch > epoch
    with pytest.raises(NotAttachedError):
        story.ledger.extend(story.first, "s", epoch, 1, 1.0)


def test_third_owner_comes_with_the_same_manifest(story: Story) -> None:
    manifest = story.ledger.seal(story.first, SealEntry("s", story.begin().epoch, 0, [], hand_over=True), 0.0).epoch
    story.ledger.take_over(story.second, "s", TakeOver(manifest), 0.0)
    story.ledger.detach(story.second, 0.0, process_is_gone=True)
    assert story.ledger.take_over(story.first, "s", TakeOver(manifest), 0.0).epoch > manifest


def test_owner_that_lives_is_fenced_however_long_that_takes(story: Story) -> None:
    epoch = story.begin().epoch
    story.ledger.detach(story.first, 0.0, process_is_gone=False)
    story.ledger.expire(LEASE_S)
    with pytest.raises(WriterActiveError):
        story.ledger.take_over(story.second, "s", TakeOver(epoch), LEASE_S)
    with pytest.raises(WriterActiveError):
        story.ledger.begin(story.second, "s", [], 1, LEASE_S)
    assert story.ledger.expire(LEASE_S + GRACE_S - 0.1).overdue == ()
    assert story.ledger.expire(LEASE_S + GRACE_S).overdue == (OverdueFence(WorkerProcess("first", 7, 1), 3),)
    assert story.ledger.expire(1000 * LEASE_S).overdue == (), "said once"
    assert story.leased() == 3
    assert story.ledger.processes()[0] == (story.first, WorkerProcess("first", 7, 1))


def test_orphan_waits_as_briefly_as_an_offer(story: Story) -> None:
    story.begin()
    story.ledger.detach(story.first, 1.0, process_is_gone=False)
    story.ledger.detach(story.first, 2.0, process_is_gone=True)
    story.ledger.detach(story.first, 2.4, process_is_gone=True)
    story.ledger.expire(2.0 + OFFER_S - 0.01)
    assert story.leased() == 3
    story.ledger.expire(2.0 + OFFER_S)
    assert story.leased() == 0
    assert story.ledger.processes() == [(story.second, WorkerProcess("second", 7, 1))]


def test_fence_falls_when_its_owner_no_longer_names_the_sequence(story: Story) -> None:
    epoch = story.begin().epoch
    before = story.ledger.renew(story.first, [("s", epoch)], 0.0).number
    story.ledger.expire(LEASE_S)
    late = story.ledger.renew(story.first, [], LEASE_S, before)
    assert story.leased() == 3, "that was written before the fence: the worker may have had the grant since"
    still = story.ledger.renew(story.first, [("s", epoch)], LEASE_S, late.number)
    assert (still.lost, story.leased()) == (("s",), 3), "its step has not ended"
    story.ledger.renew(story.second, [], LEASE_S, still.number)
    assert story.leased() == 3, "another worker's word counts for nothing"
    story.ledger.renew(story.first, [], LEASE_S, still.number)
    assert story.leased() == 0


def test_worker_that_attached_again_answers_for_what_it_lost(story: Story) -> None:
    epoch = story.begin().epoch
    story.ledger.detach(story.first, 0.0, process_is_gone=False)
    again = story.ledger.attach(WorkerProcess("first", 7, 1))
    assert story.ledger.renew(again, [("s", epoch)], 0.0).lost == ("s",)
    assert story.leased() == 3
    story.ledger.renew(again, [], 0.0)
    assert story.leased() == 0


def test_other_process_of_the_same_name_cannot_answer_for_the_first(story: Story) -> None:
    story.begin()
    story.ledger.detach(story.first, 0.0, process_is_gone=False)
    story.ledger.renew(story.ledger.attach(WorkerProcess("first", 8, 1)), [], 0.0)
    assert story.leased() == 3


def test_fence_falls_when_the_process_is_seen_to_be_gone(story: Story) -> None:
    epoch = story.begin().epoch
    story.ledger.detach(story.first, 0.0, process_is_gone=False)
    story.ledger.detach(story.first, 0.0, process_is_gone=True)
    assert story.ledger.take_over(story.second, "s", TakeOver(epoch), 1.0).block_ids


def test_worker_that_attached_again_goes_on(story: Story) -> None:
    epoch = story.begin().epoch
    story.ledger.detach(story.first, 0.0, process_is_gone=False)
    again = story.ledger.attach(WorkerProcess("first", 7, 1))
    assert story.ledger.take_over(again, "s", TakeOver(epoch), 1.0).epoch > epoch
    assert {attachment_id for attachment_id, _ in story.ledger.processes()} == {story.second, again}


def test_restarted_request_replaces_an_orphan_but_no_active_sequence(story: Story) -> None:
    old = story.begin()
    with pytest.raises(DuplicateRequestError):
        story.ledger.begin(story.second, "s", [], 1, 1.0)
    story.ledger.seal(story.first, SealEntry("s", old.epoch, 0, HASHES[:2]), 1.0)
    story.ledger.detach(story.first, 0.0, process_is_gone=True)
    new = story.ledger.begin(story.second, "s", HASHES[:2], 3, 1.0)
    assert new.cached_block_count == 2
    assert story.leased() == 1


def test_lease_that_ran_out_is_revoked_once(story: Story) -> None:
    epoch = story.begin().epoch
    assert story.ledger.expire(LEASE_S - 0.1).revoked == ()
    assert story.ledger.expire(LEASE_S).revoked == (Revoked(story.first, ("s",)),)
    assert story.ledger.expire(LEASE_S).revoked == ()
    assert story.ledger.renew(story.first, [("s", epoch)], LEASE_S).lost == ("s",)
    assert story.ledger.release(story.first, [("s", epoch)]) == 1, "its word lifts the fence"


def test_grant_whose_answer_was_lost_runs_out(story: Story) -> None:
    story.begin()
    last_answer = None
    for now_s in (4.0, 8.0, 12.0, 16.0, 20.0):
        story.ledger.expire(now_s)
        last_answer = story.ledger.renew(story.first, [], now_s, last_answer).number
    assert story.leased() == 3, "renewed at 8: its answer might have crossed that call"
    story.ledger.renew(story.first, [], 24.0, last_answer)
    assert story.leased() == 0


def test_what_is_taken_over_is_renewed_unnamed_as_if_it_had_just_begun(story: Story) -> None:
    epoch = story.begin().epoch
    offered = story.ledger.seal(story.first, SealEntry("s", epoch, 0, [], hand_over=True), 9.0).epoch
    story.ledger.take_over(story.second, "s", TakeOver(offered), 9.2)
    story.ledger.renew(story.second, [], 18.0)
    story.ledger.expire(19.5)
    assert story.ledger.right_to("s") is Right.OWNED, "the answer to the take-over may still be on its way"


def test_a_hand_over_is_repeated_only_by_whoever_made_it(story: Story) -> None:
    entry = SealEntry("s", story.begin().epoch, 0, HASHES[:1], hand_over=True)
    offered = story.ledger.seal(story.first, entry, 0.0).epoch
    assert story.ledger.seal(story.first, entry, 0.1).epoch == offered
    with pytest.raises(StaleEpochError):
        story.ledger.seal(story.second, entry, 0.1)


def test_blocks_that_a_sequence_adds_count_for_its_tenant() -> None:
    ledger = BlockLedger(TieredStore(StoreSettings(8)), LedgerSettings(LEASE_S, GRACE_S, tenant_block_count=4))
    worker = ledger.attach(WorkerProcess("w", 7, 1))
    epoch = ledger.begin(worker, "s", [], 2, 0.0, "tenant").epoch
    ledger.extend(worker, "s", epoch, 2, 0.0)
    with pytest.raises(TenantQuotaError):
        ledger.begin(worker, "t", [], 1, 0.0, "tenant")
    ledger.release(worker, [("s", epoch)])
    ledger.begin(worker, "t", [], 4, 0.0, "tenant")
    with pytest.raises(TenantQuotaError):
        ledger.begin(worker, "u", [], 1, 0.0, "tenant")


def test_offered_sequence_that_nobody_takes_is_released(story: Story) -> None:
    epoch = story.begin().epoch
    offered = story.ledger.seal(story.first, SealEntry("s", epoch, 0, HASHES[:1], hand_over=True), 5.0).epoch
    story.ledger.detach(story.first, 0.0, process_is_gone=True)
    story.ledger.expire(5.0 + OFFER_S - 0.01)
    assert story.leased() == 2
    assert story.ledger.expire(5.0 + OFFER_S).revoked == ()
    assert story.leased() == 0
    with pytest.raises(UnknownSequenceError):
        story.ledger.take_over(story.second, "s", TakeOver(offered), 6.0)


def test_take_over_is_all_or_nothing(story: Story) -> None:
    offered = story.ledger.seal(story.first, SealEntry("s", story.begin().epoch, 0, [], hand_over=True), 0.0).epoch
    with pytest.raises(KvExhaustedError):
        story.ledger.take_over(story.second, "s", TakeOver(offered, 9), 0.0)
    assert len(story.ledger.take_over(story.second, "s", TakeOver(offered, 8), 0.0).block_ids) == 8
    assert story.ledger.stats().take_overs == 1


def test_what_was_sealed_beyond_what_a_taker_knows_becomes_cache_and_it_writes_a_copy(story: Story) -> None:
    grant = story.begin(4)
    story.ledger.seal(story.first, SealEntry("s", grant.epoch, 0, HASHES[:3]), 0.0)
    story.ledger.detach(story.first, 0.0, process_is_gone=True)
    with pytest.raises(KvExhaustedError):
        story.ledger.take_over(story.second, "s", TakeOver(grant.epoch, 7, sealed_count=1), 0.0)
    asked = TakeOver(grant.epoch, 5, sealed_count=1)
    taken = story.ledger.take_over(story.second, "s", asked, 0.0)
    assert (taken.cached_block_count, len(taken.block_ids)) == (1, 5)
    assert (taken.block_ids[0], taken.block_ids[3]) == (grant.block_ids[0], grant.block_ids[3])
    assert not {*taken.block_ids[1:3], taken.block_ids[4]} & {*grant.block_ids}, "sealed blocks are never written"
    assert taken.effects.copies == (CopyBlock(Tier.DEVICE, grant.block_ids[1], Tier.DEVICE, taken.block_ids[1]),)
    assert story.store.find(HASHES[2]) is Tier.DEVICE, "it is cache"
    story.ledger.seal(story.second, SealEntry("s", taken.epoch, 1, HASHES[1:3]), 0.0)
    again = story.ledger.take_over(story.second, "s", asked, 0.0)
    assert (again.epoch, again.cached_block_count, again.block_ids) == (taken.epoch, 3, taken.block_ids)
    story.ledger.release(story.second, [("s", taken.epoch)])
    assert story.leased() == 0
    assert story.ledger.stats().tiers[0].sealed == 3, "each hash once"


def test_what_was_granted_by_a_request_that_was_not_answered_is_given_up_by_its_number(story: Story) -> None:
    story.ledger.note_request("s", story.begin().epoch, 7)
    assert story.ledger.release_unheard(story.second, [("s", 7)]) == 0, "it was another worker's request"
    assert story.ledger.release_unheard(story.first, [("s", 6), ("s", 0), ("t", 7)]) == 0
    assert story.ledger.release_unheard(story.first, [("s", 7)]) == 1
    assert story.leased() == 0
    again = story.begin()
    story.ledger.note_request("s", again.epoch - 1, 7)
    assert story.ledger.release_unheard(story.first, [("s", 7)]) == 0, "it was another grant"
    story.ledger.note_request("s", again.epoch, 8)
    offered = story.ledger.seal(story.first, SealEntry("s", again.epoch, 0, [], hand_over=True), 0.0).epoch
    assert story.ledger.release_unheard(story.first, [("s", 8)]) == 0, "who handed over has heard"
    taken = story.ledger.take_over(story.second, "s", TakeOver(offered), 0.0)
    assert story.ledger.release_unheard(story.second, [("s", 8)]) == 0, "nothing is known of this one's"
    story.ledger.note_request("s", taken.epoch, 1)
    assert story.ledger.release_unheard(story.second, [("s", 1)]) == 1


def test_refused_seal_does_nothing(story: Story) -> None:
    epoch = story.begin().epoch
    story.ledger.seal(story.first, SealEntry("s", epoch, 0, HASHES[:1]), 0.0)
    for entry in (
        SealEntry("s", epoch, 0, [HASHES[5], HASHES[1]], hand_over=True),
        SealEntry("s", epoch, 2, HASHES[2:3], hand_over=True),
        SealEntry("s", epoch, 0, HASHES[:4], hand_over=True),
    ):
        with pytest.raises(InvalidFieldError):
            story.ledger.seal(story.first, entry, 0.0)
    with pytest.raises(StaleEpochError):
        story.ledger.seal(story.second, SealEntry("s", epoch, 1, HASHES[1:2]), 0.0)
    assert story.store.hashes(Tier.DEVICE) == HASHES[:1]
    assert story.ledger.extend(story.first, "s", epoch, 1, 0.0).cached_block_count == 1
