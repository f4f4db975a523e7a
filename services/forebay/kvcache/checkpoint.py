"""What the blocks of a memory tier hold, noted beside the tier's memory, so that a killed service's cache is not lost.

One record per block, in a file of shared memory: it outlives this process as the memory does, and a reboot takes both.
A record is the block's hash, the digest of its content, and a checksum over both, place and key; half a record, or one
of another model or layout, does not match and counts as none. Does not know when a record is true: whoever notes it
keeps to the order of `forebay.kv.effects.BlockRecord`.
"""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xxhash import xxh3_64_digest

from forebay.errors import StartError
from forebay.kv.hashing import HASH_BYTES

_CHECK_BYTES: Final = 8
_DIGEST_BYTES: Final = 16
_BODY_BYTES: Final = HASH_BYTES + _DIGEST_BYTES
RECORD_BYTES: Final = _BODY_BYTES + _CHECK_BYTES
_NOTHING: Final = bytes(RECORD_BYTES)


@dataclass(frozen=True, slots=True)
class NotedBlock:
    """What a block of a tier held, and the xxh3-128 of its bytes then."""

    index: int
    block_hash: bytes
    digest: bytes


class Checkpoint:
    """Records of one tier."""

    def __init__(self, path: Path, key: bytes, block_count: int) -> None:
        """A new file in place of what is there. key: says what the hashes belong to. Errors: StartError."""
        self._path, self._key = path, key
        try:
            path.unlink(missing_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(file, 0, block_count * RECORD_BYTES)
                self._memory = mmap.mmap(file, block_count * RECORD_BYTES)
            finally:
                os.close(file)
        except OSError as error:
            raise StartError(f"cannot create {path}: {error.strerror}; shared memory is needed for KV") from error

    def note(self, block: NotedBlock) -> None:
        """The block holds this from now on."""
        body = block.block_hash + block.digest
        self._write(block.index, body + _check(body, block.index, self._key))

    def strike(self, index: int) -> None:
        """The block holds nothing from now on that may be found."""
        self._write(index, _NOTHING)

    def close(self) -> None:
        """Removes the file: who ends in good order leaves nothing behind."""
        self._path.unlink(missing_ok=True)
        self._memory.close()

    def _write(self, index: int, record: bytes) -> None:
        start = index * RECORD_BYTES
        self._memory[start : start + RECORD_BYTES] = record


def read_checkpoint(path: Path, key: bytes) -> list[NotedBlock]:
    """Each block that was noted there under this key; nothing where there is no such file."""
    try:
        records = path.read_bytes()
    except OSError:
        return []
    places = range(0, len(records) - RECORD_BYTES + 1, RECORD_BYTES)
    noted = ((start // RECORD_BYTES, records[start : start + RECORD_BYTES]) for start in places)
    return [
        NotedBlock(index, record[:HASH_BYTES], record[HASH_BYTES:_BODY_BYTES])
        for index, record in noted
        if record[_BODY_BYTES:] == _check(record[:_BODY_BYTES], index, key)
    ]


def _check(body: bytes, index: int, key: bytes) -> bytes:
    return xxh3_64_digest(body + index.to_bytes(8, "little") + key)
