"""What is known of a slot: which block it holds, and the digest of its content. Does no I/O.

48 bytes, big-endian: number of the write (8), block hash (16), xxh3-128 of the content (16), checksum (8). The checksum
is xxh3-64 of the first 40 bytes, seeded with the slot, so that a record cannot be taken for another slot's.
"""

import struct
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from xxhash import xxh3_64_intdigest

from forebay.kvcache.disk.shape import RECORD_BYTES

_BODY: Final = struct.Struct(">Q16s16s")
_SEALED_BODY: Final = struct.Struct(f">{_BODY.size}sQ")
_FORGOTTEN: Final = struct.Struct(">QQ")
_COLUMNS: Final = np.dtype([("write_number", ">u8"), ("block_hash", "V16"), ("digest", "V16"), ("checksum", ">u8")])
EMPTY: Final = bytes(RECORD_BYTES)
"""The record of a slot that holds nothing. Its checksum is wrong, as that of any other record that was torn."""


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """A block in a slot. `write_number` grows with every write to the file."""

    write_number: int
    block_hash: bytes
    digest: bytes

    def encoded(self, slot: int) -> bytes:
        """The record as it stands in the file."""
        body = _BODY.pack(self.write_number, self.block_hash, self.digest)
        return _SEALED_BODY.pack(body, xxh3_64_intdigest(body, slot))

    @classmethod
    def decoded(cls, slot: int, record: bytes) -> Self | None:
        """What the record says; None when the slot holds nothing, or nothing that can be trusted."""
        body, checksum = _SEALED_BODY.unpack(record)
        return cls(*_BODY.unpack(body)) if checksum == xxh3_64_intdigest(body, slot) else None


def encoded_forgotten(write_number: int) -> bytes:
    """That all writes before this one are forgotten, with a checksum, as it stands in the file."""
    return _FORGOTTEN.pack(write_number, xxh3_64_intdigest(write_number.to_bytes(8)))


def decoded_forgotten(found: bytes | bytearray) -> int:
    """The first write that is not forgotten; 0 also where nothing can be trusted."""
    write_number, checksum = _FORGOTTEN.unpack(found)
    return int(write_number) if checksum == xxh3_64_intdigest(write_number.to_bytes(8)) else 0


@dataclass(frozen=True, slots=True)
class RecordTable:
    """The slots that hold blocks, oldest write first, and the number of the next write."""

    blocks: list[tuple[int, bytes]]  # slot, block hash
    next_write_number: int

    @classmethod
    def decoded(cls, records: bytes | bytearray, first_write_number: int = 0) -> Self:
        """From the records of all slots, of writes from `first_write_number` on.

        Made for millions: no object per record but what is returned.
        """
        slots = np.array(
            [
                slot
                for slot, (body, checksum) in enumerate(_SEALED_BODY.iter_unpack(records))
                if checksum == xxh3_64_intdigest(body, slot)
            ],
            np.int64,
        )
        columns = np.frombuffer(records, _COLUMNS)[slots]
        are_kept = columns["write_number"] >= first_write_number
        slots, columns = slots[are_kept], columns[are_kept]
        order = np.argsort(columns["write_number"])
        blocks = list(zip(slots[order].tolist(), columns["block_hash"][order].tolist(), strict=True))
        return cls(blocks, int(columns["write_number"][order[-1]]) + 1 if blocks else first_write_number)
