"""A digest belongs to what lies in a place: it is computed once, and anew when something else lies there."""

from xxhash import xxh3_128_digest

from forebay.kv.effects import BlockRecord
from forebay.kv.tier import Tier
from forebay.kvcache.digests import BlockDigests


def test_a_digest_is_computed_once_and_goes_with_its_block() -> None:
    memory, asked = bytearray(b"abcdefgh"), []

    def memory_of(tier: Tier, index: int) -> memoryview:
        asked.append((tier, index))
        return memoryview(memory)[4 * index : 4 * index + 4]

    digests = BlockDigests(memory_of)
    assert digests.of(Tier.DEVICE, 1) == digests.of(Tier.DEVICE, 1) == xxh3_128_digest(b"efgh")
    assert digests.of(Tier.HOST, 1) == xxh3_128_digest(b"efgh")
    assert asked == [(Tier.DEVICE, 1), (Tier.HOST, 1)]
    assert digests.is_whole(Tier.DEVICE, 1)
    memory[4:] = b"ijkl"
    assert not digests.is_whole(Tier.DEVICE, 1)
    assert digests.is_whole(Tier.DEVICE, 0), "as far as is known"
    digests.forget([BlockRecord(Tier.DEVICE, 1, b"hash"), BlockRecord(Tier.DEVICE, 0, None)])
    assert len(digests) == 1
    assert digests.of(Tier.DEVICE, 1) == xxh3_128_digest(b"ijkl")
