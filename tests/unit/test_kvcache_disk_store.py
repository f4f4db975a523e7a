"""The disk store on real files, and what goes wrong with those."""

import errno
import logging
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.errors import BlockCorruptError, DiskFailedError
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kvcache.disk.block_file import OpenFile
from forebay.kvcache.disk.folder import FILE_NAME, open_folder
from forebay.kvcache.disk.record import EMPTY, RecordTable, SlotRecord
from forebay.kvcache.disk.shape import FORGOTTEN_OFFSET, FileShape
from forebay.kvcache.disk.store import DiskStore
from forebay.testing.torn_file import TornFile

LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=5, kv_heads=3, head_dim=64)
HASHES = [bytes([number]) * 16 for number in range(4)]


def content(number: int) -> memoryview:
    return memoryview(bytes([number, 255 - number]) * (LAYOUT.block_bytes // 2))


def read(store: DiskStore, slot: int, block_hash: bytes) -> bytes:
    into = bytearray(LAYOUT.block_bytes)
    store.read(slot, block_hash, memoryview(into))
    return bytes(into)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    store = open_folder(tmp_path / "kv", 8 * LAYOUT.block_bytes, "model", LAYOUT)
    store.recover()
    for number, block_hash in enumerate(HASHES):
        store.write(number, block_hash, content(number))
    yield store
    store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kv" / FILE_NAME


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


def test_what_is_forgotten_is_not_recovered_and_what_comes_after_is(store: DiskStore, path: Path) -> None:
    store.forget_all()
    store.write(1, HASHES[3], content(3))
    assert reopened(path) == [(1, HASHES[3])]
    store.forget_all()
    assert reopened(path) == []
    store.write(2, HASHES[0], content(0))
    assert reopened(path) == [(2, HASHES[0])]


def test_a_note_of_what_is_forgotten_that_is_damaged_counts_as_none(store: DiskStore, path: Path) -> None:
    store.forget_all()
    flip(path, FORGOTTEN_OFFSET + 3)
    assert len(reopened(path)) == len(HASHES)


def reopened(path: Path) -> list[tuple[int, bytes]]:
    """What a later service recovers."""
    shape = FileShape.within(8 * LAYOUT.block_bytes, LAYOUT.block_bytes)
    later = DiskStore(OpenFile(os.open(path, os.O_RDWR)), shape)
    try:
        return later.recover()
    finally:
        later.close()


def test_each_slot_gives_back_what_it_was_given(store: DiskStore) -> None:
    assert [read(store, number, HASHES[number]) for number in range(4)] == [bytes(content(each)) for each in range(4)]
    store.write(1, HASHES[3], content(3))
    assert read(store, 1, HASHES[3]) == content(3)
    stats = store.stats
    assert (stats.read_count, stats.written_count, stats.corrupt_count, stats.failure) == (5, 5, 0, None)


def test_a_slot_without_that_block_is_corrupt_and_the_tier_stays_on(store: DiskStore) -> None:
    store.forget(0)
    for slot, block_hash in ((0, HASHES[0]), (1, HASHES[2]), (5, HASHES[1])):
        with pytest.raises(BlockCorruptError, match=f"{block_hash.hex()} in disk slot {slot}"):
            read(store, slot, block_hash)
    assert store.stats.corrupt_count == 3
    assert read(store, 1, HASHES[1]) == content(1)


@pytest.mark.parametrize("byte", [0, 1, LAYOUT.block_bytes // 2, LAYOUT.block_bytes - 1])
def test_a_flipped_bit_is_found(store: DiskStore, path: Path, byte: int) -> None:
    flip(path, store.shape.block_offset(2) + byte)
    with pytest.raises(BlockCorruptError, match="does not match its digest"):
        read(store, 2, HASHES[2])
    store.write(2, HASHES[2], content(2))
    assert read(store, 2, HASHES[2]) == content(2)


@pytest.mark.parametrize("byte", range(48))
def test_a_flipped_bit_in_a_record_is_found_now_and_at_recovery(store: DiskStore, path: Path, byte: int) -> None:
    flip(path, store.shape.record_offset(2) + byte)
    with pytest.raises(BlockCorruptError, match="record is gone"):
        read(store, 2, HASHES[2])
    assert store.recover() == [(0, HASHES[0]), (1, HASHES[1]), (3, HASHES[3])]


def test_a_record_counts_in_its_own_slot_only() -> None:
    record = SlotRecord(7, HASHES[1], HASHES[2])
    assert SlotRecord.decoded(3, record.encoded(3)) == record
    assert SlotRecord.decoded(4, record.encoded(3)) is None
    assert SlotRecord.decoded(3, EMPTY) is None
    records = EMPTY + SlotRecord(9, HASHES[1], HASHES[0]).encoded(1) + record.encoded(2) + record.encoded(2)
    assert RecordTable.decoded(records) == RecordTable([(2, HASHES[1]), (1, HASHES[1])], next_write_number=10)


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("failing", ["read", "write", "forget", "recover"])
def test_an_io_error_switches_the_tier_off_with_one_warning(
    code: int, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = TornFile((shape := FileShape(LAYOUT.block_bytes, 4)).size_bytes)
    store = DiskStore(file, shape)
    store.write(0, HASHES[0], content(0))
    into = memoryview(bytearray(LAYOUT.block_bytes))
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: store.read(0, HASHES[0], into),
        "write": lambda: store.write(1, HASHES[1], content(1)),
        "forget": lambda: store.forget(0),
        "recover": store.recover,
    }
    file.error = OSError(code, os.strerror(code))
    with caplog.at_level(logging.WARNING), pytest.raises(DiskFailedError, match=os.strerror(code)):
        calls[failing]()
    file.error = None
    for call in calls.values():
        with pytest.raises(DiskFailedError, match=os.strerror(code)):
            call()
    assert len(caplog.records) == 1
    assert os.strerror(code) in caplog.text
    assert store.stats.failure == f"the disk tier is off: {os.strerror(code)}"


def test_a_file_truncated_under_us_switches_the_tier_off(store: DiskStore, path: Path) -> None:
    os.truncate(path, store.shape.block_offset(2) + 1)
    assert read(store, 1, HASHES[1]) == content(1)
    with pytest.raises(DiskFailedError, match="truncated"):
        read(store, 2, HASHES[2])
    with pytest.raises(DiskFailedError):
        read(store, 1, HASHES[1])


def test_a_limit_on_writing_switches_the_tier_off(store: DiskStore) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.shape.block_offset(3) + 10, hard))
    try:
        with pytest.raises(DiskFailedError, match="File too large"):
            store.write(3, HASHES[0], content(0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with pytest.raises(DiskFailedError, match="File too large"):
        store.forget(0)


def test_a_file_that_may_not_be_written_switches_the_tier_off(store: DiskStore, path: Path) -> None:
    read_only = DiskStore(OpenFile(os.open(path, os.O_RDONLY)), store.shape)
    assert len(read_only.recover()) == 4
    assert read(read_only, 1, HASHES[1]) == content(1)
    with pytest.raises(DiskFailedError, match="Bad file descriptor"):
        read_only.write(1, HASHES[1], content(1))
    read_only.close()


def test_a_folder_removed_or_made_read_only_under_us_goes_unnoticed_until_the_next_start(
    store: DiskStore, path: Path
) -> None:
    path.chmod(0)
    path.parent.chmod(0o500)
    store.write(0, HASHES[3], content(3))
    path.parent.chmod(0o700)
    shutil.rmtree(path.parent)
    store.write(1, HASHES[2], content(2))
    assert (read(store, 0, HASHES[3]), read(store, 1, HASHES[2])) == (content(3), content(2))
