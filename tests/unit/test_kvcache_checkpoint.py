"""What a checkpoint says of blocks after a crash: what was noted, where it was noted, under its key, or nothing."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from forebay.kvcache.checkpoint import Checkpoint, NotedBlock, read_checkpoint

KEY = b"model and layout"
NOTED = [NotedBlock(index, bytes([index + 1]) * 16, bytes([index + 101]) * 16) for index in range(3)]
RECORD_BYTES = 40


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """Of a checkpoint of four blocks, the first three noted."""
    path = tmp_path / "index"
    with closing(Checkpoint(path, KEY, 4)) as checkpoint:
        for one in NOTED:
            checkpoint.note(one)
        yield path


def test_what_is_noted_is_read_and_what_is_struck_is_not(path: Path) -> None:
    assert read_checkpoint(path, KEY) == NOTED
    with closing(Checkpoint(path, KEY, 4)) as checkpoint:
        checkpoint.note(replace(NOTED[0], index=3))
        checkpoint.note(NOTED[2])
        checkpoint.strike(3)
        assert read_checkpoint(path, KEY) == NOTED[2:]


def test_of_another_key_nothing_is_read(path: Path) -> None:
    assert read_checkpoint(path, b"another layout") == []


def test_a_record_in_the_place_of_another_is_not_believed(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[RECORD_BYTES : 2 * RECORD_BYTES] * 4)
    assert read_checkpoint(path, KEY) == NOTED[1:2]


@pytest.mark.parametrize("at", range(RECORD_BYTES))
def test_a_record_with_a_flipped_bit_or_cut_off_is_not_believed(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[RECORD_BYTES + at] ^= 1
    path.write_bytes(content[: 2 * RECORD_BYTES + at])
    assert read_checkpoint(path, KEY) == NOTED[:1]


def test_where_there_is_no_file_nothing_is_read(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path / "none", KEY) == []
