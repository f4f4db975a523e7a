"""The hash contract, byte for byte, and its equivalences."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128

from forebay.errors import TokenOutOfRangeError
from forebay.kv.hashing import HashChain, block_hashes, chain, reusable_block_count, root_hash

ROOT = root_hash("digest", "tenant", "salt")
TOKEN_IDS = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def test_contract_byte_for_byte() -> None:
    assert xxh3_128(b"\x06\0\0\0digest\x04\0\0\0salt\x06\0\0\0tenant").digest() == ROOT
    first = xxh3_128(ROOT + b"\x01\0\0\0\xff\xff\xff\xff").digest()
    assert block_hashes(ROOT, [1, 2**32 - 1, 0x0A0B0C0D, 4, 5], 2) == [
        first,
        xxh3_128(first + b"\x0d\x0c\x0b\x0a\x04\0\0\0").digest(),
    ]


def test_contract_never_changes() -> None:
    # Written down once: other processes and other versions must find the same names.
    assert root_hash("m", "", "").hex() == "8c5a71550290274ac5a9cafde90a4202"
    assert block_hashes(root_hash("m", "", ""), range(64), 32)[1].hex() == "43978a0c3f058d8f283ee8e1757c3b7c"


def test_no_two_roots_run_together() -> None:
    triples = [("ab", "c", ""), ("a", "bc", ""), ("a", "c", "b"), ("", "abc", ""), ("ab", "", "c"), ("é", "", "")]
    assert len({root_hash(*triple) for triple in triples}) == len(triples)


@given(TOKEN_IDS, st.integers(1, 7))
def test_block_hashes_are_a_chain(token_ids: list[int], block_tokens: int) -> None:
    parent, expected = ROOT, []
    for start in range(0, len(token_ids) // block_tokens * block_tokens, block_tokens):
        parent = chain(parent, token_ids[start : start + block_tokens])
        expected.append(parent)
    assert block_hashes(ROOT, token_ids, block_tokens) == expected


@given(st.lists(TOKEN_IDS, max_size=6), st.integers(1, 7))
def test_growing_chain_equals_hashing_at_once(pieces: list[list[int]], block_tokens: int) -> None:
    growing = HashChain(ROOT, block_tokens)
    added = [one for piece in pieces for one in growing.extend(piece)]
    assert added == growing.hashes == block_hashes(ROOT, [token for piece in pieces for token in piece], block_tokens)


def test_hash_names_all_tokens_before() -> None:
    ours, theirs = block_hashes(ROOT, [1, 2, 3, 4], 2), block_hashes(ROOT, [9, 2, 3, 4], 2)
    assert ours[1] != theirs[1]


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_token_ids_are_u32(token_id: int) -> None:
    with pytest.raises(TokenOutOfRangeError):
        block_hashes(ROOT, [token_id], 1)


@pytest.mark.parametrize(("token_count", "expected"), [(0, 0), (1, 0), (32, 0), (33, 1), (64, 1), (65, 2)])
def test_last_token_is_always_computed(token_count: int, expected: int) -> None:
    assert reusable_block_count(token_count, 32) == expected
