"""A digest belongs to what lies in a place: it is computed once, and anew when something else lies there."""

from xxhash import xxh3_128_digest

from forebay.kv.effects import BlockRecord, CopyBlock
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
    memory[4:] = b"ijkl"
    digests.settle([], [BlockRecord(Tier.DEVICE, 1, b"hash"), BlockRecord(Tier.DEVICE, 0, None)])
    assert len(digests) == 1
    assert digests.of(Tier.DEVICE, 1) == xxh3_128_digest(b"ijkl")


def test_what_is_copied_keeps_its_digest_whatever_comes_in_its_place() -> None:
    one, two = xxh3_128_digest(b"one"), xxh3_128_digest(b"two")
    content = {(Tier.DEVICE, 0): b"one", (Tier.HOST, 0): b"two"}
    digests = BlockDigests(lambda tier, index: memoryview(content[tier, index]))
    digests.put((Tier.DEVICE, 0), one)
    digests.put((Tier.DEVICE, 1), b"of what lay there before")
    digests.put((Tier.DEVICE, 2), b"of what lay there before, too")
    digests.put((Tier.HOST, 0), two)
    copies = [
        CopyBlock(Tier.DEVICE, 0, Tier.HOST, 1),
        CopyBlock(Tier.HOST, 0, Tier.DEVICE, 0),
        CopyBlock(Tier.HOST, 3, Tier.DEVICE, 2),  # not yet known
    ]
    records = [
        BlockRecord(Tier.DEVICE, 0, None),
        BlockRecord(Tier.HOST, 1, b"one"),
        BlockRecord(Tier.DEVICE, 0, b"two"),
        BlockRecord(Tier.HOST, 0, None),
        BlockRecord(Tier.DEVICE, 1, b"new"),
        BlockRecord(Tier.DEVICE, 2, b"three"),
    ]
    assert all(map(digests.copied, copies))
    digests.settle(copies, records)
    assert digests.known((Tier.HOST, 1)) == one
    assert digests.known((Tier.DEVICE, 0)) == two
    assert len(digests) == 2


def test_what_comes_up_is_compared_with_its_digest_and_what_goes_down_is_not() -> None:
    digests = BlockDigests(lambda tier, index: memoryview(b"damaged"))
    digests.put((Tier.HOST, 0), xxh3_128_digest(b"sealed"))
    digests.put((Tier.DEVICE, 0), xxh3_128_digest(b"sealed"))
    assert not digests.copied(CopyBlock(Tier.HOST, 0, Tier.DEVICE, 1))
    assert digests.copied(CopyBlock(Tier.DEVICE, 0, Tier.HOST, 1))
    assert not digests.copied(CopyBlock(Tier.HOST, 1, Tier.DEVICE, 2)), "it went down with its digest"
    assert digests.copied(CopyBlock(Tier.HOST, 2, Tier.DEVICE, 3)), "as far as is known"
