"""The hash contract: how a full block of tokens is named. Router, workers and the KV-cache service all use this.

    root  = xxh3_128(field(model digest) + field(cache salt) + field(tenant))
    block = xxh3_128(parent hash + token ids as little-endian u32)

`field(x)` is the UTF-8 length of x as little-endian u32, then x, so that no two triples run together. A hash is the 16
bytes of the canonical (big-endian) xxh3-128 digest with seed 0. Since a block's hash covers its parent's, it names all
tokens from position 0 on. The layout is no part of it: blocks of one node have one layout, and a hash names content.

Does not know which blocks exist, nor what tokens mean.
"""

import sys
from array import array
from collections.abc import Sequence

from xxhash import xxh3_128_digest

from forebay.errors import TokenOutOfRangeError

HASH_BYTES = 16
TOKEN_BYTES = 4


def root_hash(model_digest: str, tenant: str, cache_salt: str) -> bytes:
    """Parent of a sequence's first block: sequences share prefixes only when all three are equal."""
    fields = (text.encode() for text in (model_digest, cache_salt, tenant))
    return xxh3_128_digest(b"".join(len(field).to_bytes(4, "little") + field for field in fields))


def chain(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Hash of one full block.

    Errors: TokenOutOfRangeError when an id is not a u32.
    """
    return xxh3_128_digest(parent + _packed(token_ids))


def block_hashes(root: bytes, token_ids: Sequence[int], block_tokens: int) -> list[bytes]:
    """Hashes of all full blocks of a sequence, in order; tokens after the last full block are left out.

    Errors: TokenOutOfRangeError when an id is not a u32.
    """
    packed = _packed(token_ids)
    block_bytes = block_tokens * TOKEN_BYTES
    hashes: list[bytes] = []
    parent = root
    for start in range(0, len(packed) - block_bytes + 1, block_bytes):
        parent = xxh3_128_digest(parent + packed[start : start + block_bytes])
        hashes.append(parent)
    return hashes


def reusable_block_count(token_count: int, block_tokens: int) -> int:
    """Most blocks of a prompt that may come from the cache: its last token must be computed, to sample the next."""
    return max(0, token_count - 1) // block_tokens


class HashChain:
    """Hashes of a sequence that grows: decode appends tokens and gets the hash of each block they fill."""

    def __init__(self, root: bytes, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self.hashes: list[bytes] = []
        self._parent = root
        self._open_token_ids: list[int] = []

    def extend(self, token_ids: Sequence[int]) -> list[bytes]:
        """Appends tokens; returns the hashes of the blocks that became full, in order.

        Errors: TokenOutOfRangeError when an id is not a u32.
        """
        open_token_ids = [*self._open_token_ids, *token_ids]
        full = block_hashes(self._parent, open_token_ids, self.block_tokens)
        self._open_token_ids = open_token_ids[len(full) * self.block_tokens :]
        if full:
            self._parent = full[-1]
            self.hashes += full
        return full


def _packed(token_ids: Sequence[int]) -> bytes:
    try:
        words = array("I", token_ids)
    except OverflowError:
        raise TokenOutOfRangeError("a token id is not an unsigned 32-bit integer", field="token_ids") from None
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
