"""What is kept, demoted, promoted and removed when room runs short."""

import pytest

from forebay.errors import KvExhaustedError
from forebay.kv.departure import Departure
from forebay.kv.effect_log import EffectLog
from forebay.kv.effects import CopyBlock, Moved, Removed, Stored
from forebay.kv.pins import Pins
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import StoreSettings, TieredStore

HASHES = [bytes([number]) * 16 for number in range(12)]


def cache(store: TieredStore, hashes: list[bytes]) -> EffectLog:
    """Computes blocks and leaves them as cache."""
    log = EffectLog()
    blocks = store.lease(len(hashes), log)
    store.seal(blocks, hashes, log)
    store.give_back(blocks, len(hashes))
    return log


def test_end_of_a_prefix_goes_before_its_beginning() -> None:
    store = TieredStore(StoreSettings(4, 0, kept_after_uses=1))
    cache(store, HASHES[:4])
    log = cache(store, HASHES[4:6])
    assert log.events == [Removed(Tier.DEVICE, (HASHES[3], HASHES[2])), Stored(Tier.DEVICE, tuple(HASHES[4:6]))]
    assert store.departures == {Departure.EVICTED: 2}


def test_what_was_used_last_stays() -> None:
    store = TieredStore(StoreSettings(4, 0, kept_after_uses=1))
    cache(store, HASHES[:2])
    cache(store, HASHES[2:4])
    used = store.reserve(HASHES[:2], 2, EffectLog())
    store.give_back(used.block_ids, 2)
    cache(store, HASHES[4:6])
    assert set(store.hashes(Tier.DEVICE)) == {*HASHES[:2], *HASHES[4:6]}


def test_warmest_victims_are_demoted_and_the_coldest_removed() -> None:
    store = TieredStore(StoreSettings(4, 1, kept_after_uses=1))
    cache(store, HASHES[:4])
    log = cache(store, HASHES[4:7])
    assert log.events[:2] == [Removed(Tier.DEVICE, (HASHES[3], HASHES[2])), Moved(Tier.DEVICE, Tier.HOST, (HASHES[1],))]
    assert [(copy.from_tier, copy.to_tier, copy.to_index) for copy in log.copies] == [(Tier.DEVICE, Tier.HOST, 0)]
    assert store.find(HASHES[1]) is Tier.HOST


def test_promotion_frees_the_host_block_and_orders_copies() -> None:
    store = TieredStore(StoreSettings(2, 2, kept_after_uses=1))
    cache(store, HASHES[:2])
    cache(store, HASHES[2:4])
    log = EffectLog()
    reserved = store.reserve(HASHES[:2], 2, log)
    assert (reserved.cached_count, reserved.promoted_count) == (2, 2)
    # HOST is full of what is wanted: nothing can be demoted into it, so what lay in DEVICE goes.
    assert log.events == [
        Removed(Tier.DEVICE, (HASHES[3], HASHES[2])),
        Moved(Tier.HOST, Tier.DEVICE, tuple(HASHES[:2])),
    ]
    assert [copy.to_index for copy in log.copies] == reserved.block_ids
    assert store.counts()[1].free == 2


def test_demotion_is_copied_before_its_place_is_filled() -> None:
    store = TieredStore(StoreSettings(1, 2, kept_after_uses=1))
    cache(store, HASHES[:1])
    cache(store, HASHES[1:2])
    log = EffectLog()
    store.reserve(HASHES[:1], 1, log)
    assert log.copies == [
        CopyBlock(Tier.DEVICE, 0, Tier.HOST, 1),
        CopyBlock(Tier.HOST, 0, Tier.DEVICE, 0),
    ]


def test_run_ends_at_the_first_block_that_is_not_held() -> None:
    store = TieredStore(StoreSettings(6, 0, kept_after_uses=1))
    cache(store, [HASHES[0], HASHES[2]])
    reserved = store.reserve(HASHES[:3], 3, EffectLog())
    assert (reserved.cached_count, len(set(reserved.block_ids))) == (1, 3)


def test_sealing_what_lies_in_host_moves_it_without_a_copy() -> None:
    store = TieredStore(StoreSettings(1, 1, kept_after_uses=1))
    cache(store, HASHES[:1])
    cache(store, HASHES[1:2])
    log = EffectLog()
    blocks = store.lease(1, log)
    copies = len(log.copies)
    store.seal(blocks, HASHES[1:2], log)
    assert log.events[-1] == Moved(Tier.HOST, Tier.DEVICE, (HASHES[1],))
    assert len(log.copies) == copies
    assert store.counts()[1].sealed == 0


def test_referenced_blocks_are_never_evicted() -> None:
    store = TieredStore(StoreSettings(3, 0, kept_after_uses=1))
    cache(store, HASHES[:2])
    used = store.reserve(HASHES[:2], 2, EffectLog())
    with pytest.raises(KvExhaustedError):
        store.lease(2, EffectLog())
    shared = store.reserve(HASHES[:2], 3, EffectLog())
    store.give_back(used.block_ids, 2)
    with pytest.raises(KvExhaustedError):
        store.reserve(HASHES[:2], 3, EffectLog())
    store.give_back(shared.block_ids, 2)
    assert store.counts()[0].referenced == 0


def test_refused_reservation_changes_nothing() -> None:
    store = TieredStore(StoreSettings(2, 2, kept_after_uses=1))
    cache(store, HASHES[:2])
    cache(store, HASHES[2:4])
    before = store.counts()
    log = EffectLog()
    with pytest.raises(KvExhaustedError):
        store.reserve(HASHES[:2], 3, log)
    assert (store.counts(), log.copies, log.events) == (before, [], [])


def test_a_block_named_twice_is_fetched_and_let_go_once() -> None:
    store = TieredStore(StoreSettings(2, 2, 4))
    store.restore(Tier.DISK, [(0, HASHES[0])], EffectLog())
    log = EffectLog()
    store.traffic.abandon(store.traffic.fetch([HASHES[0], HASHES[0]], log), log)
    assert [read.block_hash for read in log.reads] == [HASHES[0]]
    store.traffic.finish_fill(HASHES[0], log, is_good=True)
    assert [one.referenced for one in store.counts()] == [0, 0, 0], "nobody wants it any more"


def test_what_was_being_written_when_the_disk_failed_does_not_lie_there() -> None:
    store = TieredStore(StoreSettings(1, 1, 2, kept_after_uses=1))
    cache(store, HASHES[:1])
    (write,) = cache(store, HASHES[1:2]).writes
    store.traffic.switch_disk_off(EffectLog())
    store.traffic.finish_write(write.block_hash, EffectLog(), is_good=True)
    assert [one.sealed for one in store.counts()] == [1, 1, 0]


def test_of_two_times_of_a_pin_the_later_counts() -> None:
    store = TieredStore(StoreSettings(2))
    cache(store, HASHES[:1])
    pins = Pins(store.traffic, 2)
    assert pins.pin(HASHES[:1], 20.0) == []
    assert pins.pin(HASHES[:1], 10.0) == []
    pins.expire(19.0, EffectLog())
    assert HASHES[0] in pins
    pins.expire(20.0, EffectLog())
    assert store.counts()[0].referenced == 0


def test_a_block_that_is_flushed_from_two_tiers_has_left_once_and_was_not_evicted() -> None:
    store = TieredStore(StoreSettings(2, 2, 2, kept_after_uses=1))
    cache(store, HASHES[:2])
    for write in cache(store, HASHES[2:4]).writes:  # what went to HOST is written to DISK too
        store.traffic.finish_write(write.block_hash, EffectLog(), is_good=True)
    assert store.departures == {}, "a move is no departure"
    assert store.flush(EffectLog()) == 6
    assert store.departures == {Departure.FLUSHED: 4}


def test_what_lay_only_on_a_disk_that_failed_is_lost() -> None:
    store = TieredStore(StoreSettings(2, 2, 4, kept_after_uses=1))
    for first in (0, 2, 4):
        for write in cache(store, HASHES[first : first + 2]).writes:
            store.traffic.finish_write(write.block_hash, EffectLog(), is_good=True)
    store.traffic.switch_disk_off(EffectLog())
    assert store.departures == {Departure.LOST: 2}
