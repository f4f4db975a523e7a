"""Tiers and index events survive the wire; what this version does not know is refused or passed over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.errors import InvalidFieldError
from forebay.kv.effects import IndexEvent, Moved, Removed, Stored
from forebay.kv.tier import Tier
from forebay.v1 import common_pb2, events_pb2, kvcache_pb2
from forebay.wire.kv_index import entry_from_proto, entry_to_proto, event_from_proto, event_to_proto
from forebay.wire.tier import tier_from_proto, tier_to_proto

tiers = st.sampled_from(Tier)
hashes = st.lists(st.binary(min_size=16, max_size=16), max_size=4).map(tuple)
events = st.builds(Stored, tiers, hashes) | st.builds(Removed, tiers, hashes) | st.builds(Moved, tiers, tiers, hashes)


@given(events)
def test_an_event_survives(event: IndexEvent) -> None:
    message = events_pb2.KvEvent.FromString(event_to_proto(event).SerializeToString())
    assert event_from_proto(message) == event


@given(st.binary(min_size=16, max_size=16), tiers)
def test_an_entry_survives(block_hash: bytes, tier: Tier) -> None:
    message = kvcache_pb2.IndexEntry.FromString(entry_to_proto(block_hash, tier).SerializeToString())
    assert entry_from_proto(message) == (block_hash, tier)


def test_every_tier_has_the_number_of_its_name() -> None:
    assert {common_pb2.KvTier.Name(tier_to_proto(tier)) for tier in Tier} == {f"KV_TIER_{tier.name}" for tier in Tier}
    assert len(common_pb2.KvTier.values()) == len(Tier) + 1, "all but UNSPECIFIED"


def test_a_tier_that_is_not_known_is_refused() -> None:
    with pytest.raises(InvalidFieldError):
        tier_from_proto(common_pb2.KV_TIER_UNSPECIFIED)
    with pytest.raises(InvalidFieldError):
        event_from_proto(events_pb2.KvEvent(stored=events_pb2.BlocksStored(tier=common_pb2.KV_TIER_UNSPECIFIED)))


def test_an_event_of_a_later_version_is_no_change() -> None:
    assert event_from_proto(events_pb2.KvEvent()) is None
