"""Changes and entries of a node's KV index on the wire."""

from forebay.kv.effects import IndexEvent, Moved, Removed, Stored
from forebay.kv.tier import Tier
from forebay.v1 import events_pb2, kvcache_pb2
from forebay.wire.tier import tier_from_proto, tier_to_proto


def event_to_proto(event: IndexEvent) -> events_pb2.KvEvent:
    """One change of the index."""
    match event:
        case Stored(tier, hashes):
            stored = events_pb2.BlocksStored(tier=tier_to_proto(tier), block_hashes=hashes)
            return events_pb2.KvEvent(stored=stored)
        case Removed(tier, hashes):
            removed = events_pb2.BlocksRemoved(tier=tier_to_proto(tier), block_hashes=hashes)
            return events_pb2.KvEvent(removed=removed)
        case Moved(from_tier, to_tier, hashes):
            moved = events_pb2.BlocksMoved(
                from_tier=tier_to_proto(from_tier), to_tier=tier_to_proto(to_tier), block_hashes=hashes
            )
            return events_pb2.KvEvent(moved=moved)


def event_from_proto(message: events_pb2.KvEvent) -> IndexEvent | None:
    """The change of a message; None: a kind of a later version.

    Raises:
        InvalidFieldError: a tier is not known.
    """
    match message.WhichOneof("event"):
        case "stored":
            return Stored(tier_from_proto(message.stored.tier), tuple(message.stored.block_hashes))
        case "removed":
            return Removed(tier_from_proto(message.removed.tier), tuple(message.removed.block_hashes))
        case "moved":
            moved = message.moved
            return Moved(tier_from_proto(moved.from_tier), tier_from_proto(moved.to_tier), tuple(moved.block_hashes))
        case None:
            return None


def entry_to_proto(block_hash: bytes, tier: Tier) -> kvcache_pb2.IndexEntry:
    """One block of a dump."""
    return kvcache_pb2.IndexEntry(block_hash=block_hash, tier=tier_to_proto(tier))


def entry_from_proto(message: kvcache_pb2.IndexEntry) -> tuple[bytes, Tier]:
    """Hash and tier of one block. Raises InvalidFieldError when the tier is not known."""
    return message.block_hash, tier_from_proto(message.tier)
