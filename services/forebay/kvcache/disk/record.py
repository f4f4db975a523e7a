"""What is known of a slot: which block it holds, and the digest of its content. Does no I/O.

48 bytes, little-endian: block hash (16), xxh3-128 of the content (16), number of the write (8), checksum (8). The
checksum is xxh3-64 of the first 40 bytes, seeded with the slot, so that a record cannot be taken for another slot's.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

from xxhash import xxh3_64_intdigest

from forebay.kvcache.disk.shape import RECORD_BYTES

_BODY: Final = struct.Struct("<16s16sQ")
_CHECKSUM: Final = struct.Struct("<Q")
EMPTY: Final = bytes(RECORD_BYTES)
"""The record of a slot that holds nothing. Its checksum is wrong, as that of any other record that was torn."""


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """A block in a slot. `write_number` grows with every write to the file."""

    block_hash: bytes
    digest: bytes
    write_number: int

    def encoded(self, slot: int) -> bytes:
        """The record as it stands in the file."""
        body = _BODY.pack(self.block_hash, self.digest, self.write_number)
        return body + _CHECKSUM.pack(xxh3_64_intdigest(body, slot))

    @classmethod
    def decoded(cls, slot: int, record: bytes) -> Self | None:
        """What the record says; None when the slot holds nothing, or nothing that can be trusted."""
        body = record[: _BODY.size]
        if record == EMPTY or _CHECKSUM.unpack_from(record, _BODY.size)[0] != xxh3_64_intdigest(body, slot):
            return None
        return cls(*_BODY.unpack(body))
