"""Blocks in the slots of one file: written so that a kill at any point is harmless, verified on every read.

A slot's record is cleared before its block is overwritten and written after it. Nothing is synced: what was written
outlives this process, however it ends. A power cut may keep any of the writes and lose others; then record or digest do
not match, and the block counts as corrupt. No content is ever given out under a hash it was not written with.

Blocking; called from many threads, with one caller per slot at a time. Does not know which slots are free, nor which
block is worth keeping.
"""

import itertools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from xxhash import xxh3_128_digest

from forebay.errors import BlockCorruptError, DiskFailedError
from forebay.kvcache.disk.block_file import BlockFile
from forebay.kvcache.disk.record import EMPTY, RecordTable, SlotRecord, decoded_forgotten, encoded_forgotten
from forebay.kvcache.disk.shape import FORGOTTEN_BYTES, FORGOTTEN_OFFSET, HEADER_BYTES, RECORD_BYTES, FileShape

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DiskStats:
    """Counts since the store was opened. failure: why the tier is off; None: it is on."""

    read_count: int
    written_count: int
    corrupt_count: int
    failure: str | None


class DiskStore:
    """Slots 0 … shape.block_count - 1. After one I/O error every call is refused at once: the tier is off."""

    def __init__(self, file: BlockFile, shape: FileShape) -> None:
        """Takes over a file of that shape."""
        self.shape = shape
        self._file = file
        self._lock = threading.Lock()
        self._failure: str | None = None
        self._read_count = self._written_count = self._corrupt_count = 0
        self._write_numbers = itertools.count()

    @property
    def stats(self) -> DiskStats:
        """What was done, and whether the tier is on."""
        with self._lock:
            return DiskStats(self._read_count, self._written_count, self._corrupt_count, self._failure)

    def recover(self) -> list[tuple[int, bytes]]:
        """Slot and hash of every block that earlier services left, oldest write first. Called once, before all else.

        Contents are verified when they are read. A hash may be there twice. Errors: DiskFailedError.
        """
        forgotten, records = bytearray(FORGOTTEN_BYTES), bytearray(self.shape.block_count * RECORD_BYTES)
        with self._switching_off():
            self._file.read_at(FORGOTTEN_OFFSET, memoryview(forgotten))
            self._file.read_at(HEADER_BYTES, memoryview(records))
        table = RecordTable.decoded(records, decoded_forgotten(forgotten))
        self._write_numbers = itertools.count(table.next_write_number)
        if table.blocks:
            _log.info("%d sealed KV blocks of the disk tier recovered", len(table.blocks))
        return table.blocks

    def write(self, slot: int, block_hash: bytes, data: memoryview) -> None:
        """Puts a block into a slot, in place of what it holds.

        data: `block_bytes` bytes, which nobody changes meanwhile. Errors: DiskFailedError.
        """
        assert len(data) == self.shape.block_bytes
        record = SlotRecord(next(self._write_numbers), block_hash, xxh3_128_digest(data))
        with self._switching_off():
            self._file.write_at(self.shape.record_offset(slot), EMPTY)
            self._file.write_at(self.shape.block_offset(slot), data)
            self._file.write_at(self.shape.record_offset(slot), record.encoded(slot))
        with self._lock:
            self._written_count += 1

    def read(self, slot: int, block_hash: bytes, into: memoryview) -> None:
        """Gets a block out of a slot. After an error the content of `into` (`block_bytes` bytes) means nothing.

        Errors: BlockCorruptError when the slot does not hold that block unharmed: it is to be dropped. DiskFailedError.
        """
        assert len(into) == self.shape.block_bytes
        found = bytearray(RECORD_BYTES)
        with self._switching_off():
            self._file.read_at(self.shape.record_offset(slot), memoryview(found))
            record = SlotRecord.decoded(slot, bytes(found))
            if record is None or record.block_hash != block_hash:
                raise self._corrupt(slot, block_hash, "its record is gone")
            self._file.read_at(self.shape.block_offset(slot), into)
        if xxh3_128_digest(into) != record.digest:
            raise self._corrupt(slot, block_hash, "its content does not match its digest")
        with self._lock:
            self._read_count += 1

    def forget(self, slot: int) -> None:
        """Empties a slot. Errors: DiskFailedError."""
        with self._switching_off():
            self._file.write_at(self.shape.record_offset(slot), EMPTY)

    def forget_all(self) -> None:
        """What was written so far is not recovered by services to come, though it may still be read by this one.

        Errors: DiskFailedError.
        """
        with self._switching_off():
            self._file.write_at(FORGOTTEN_OFFSET, encoded_forgotten(next(self._write_numbers) + 1))

    def close(self) -> None:
        """Gives the file back, for the next service to recover. No call may be under way, and none may follow."""
        self._file.close()

    @contextmanager
    def _switching_off(self) -> Iterator[None]:
        """Refuses when the tier is off, and switches it off at an I/O error."""
        if self._failure is not None:
            raise DiskFailedError(self._failure)
        try:
            yield
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> DiskFailedError:
        with self._lock:
            if self._failure is None:
                self._failure = f"the disk tier is off: {error.strerror or error}"
                _log.warning("%s; serving goes on without it until the service is started again", self._failure)
            return DiskFailedError(self._failure)

    def _corrupt(self, slot: int, block_hash: bytes, why: str) -> BlockCorruptError:
        with self._lock:
            self._corrupt_count += 1
        message = f"block {block_hash.hex()} in disk slot {slot} is corrupt: {why}"
        _log.warning("%s", message)
        return BlockCorruptError(message)
