"""The folder of the disk tier: what is kept, what is replaced, what is refused."""

import dataclasses
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from forebay.errors import StartError
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kvcache.disk.folder import FILE_NAME, open_folder
from forebay.kvcache.disk.store import DiskStore

LAYOUT = KvLayout(KvDtype.FLOAT32, layers=2, kv_heads=1, head_dim=8)
SIZE_BYTES = 64 * 1024
DIGEST = "sha256:one"
HASH = bytes(range(16))
BLOCK = b"kv" * (LAYOUT.block_bytes // 2)


def opened(folder: Path, size_bytes: int = SIZE_BYTES, digest: str = DIGEST, layout: KvLayout = LAYOUT) -> DiskStore:
    return open_folder(folder, size_bytes, digest, layout)


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A folder with one block in slot 2."""
    folder = tmp_path / "deep" / "kv"
    with closing(opened(folder)) as store:
        assert store.recover() == []
        store.write(2, HASH, memoryview(BLOCK))
    return folder


def test_file_is_private_preallocated_and_within_its_size(used: Path) -> None:
    stat = (used / FILE_NAME).stat()
    assert stat.st_mode & 0o777 == 0o600
    assert stat.st_size <= SIZE_BYTES
    assert stat.st_blocks * 512 >= stat.st_size, "taken, not promised"
    with closing(opened(used)) as store:
        assert store.shape.size_bytes == stat.st_size
        assert store.shape.block_count == (SIZE_BYTES - 8192) // (4096 + 48)


def test_blocks_are_there_after_a_restart(used: Path) -> None:
    with closing(opened(used)) as store:
        assert store.recover() == [(2, HASH)]
        into = bytearray(len(BLOCK))
        store.read(2, HASH, memoryview(into))
        assert into == BLOCK


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digest": "sha256:other"}, "model_digest sha256:one, not sha256:other"),
        ({"layout": dataclasses.replace(LAYOUT, dtype=KvDtype.BFLOAT16)}, "layout.dtype float32, not bfloat16"),
        ({"layout": dataclasses.replace(LAYOUT, first_kv_head=1)}, "layout.first_kv_head 0, not 1"),
        ({"size_bytes": 2 * SIZE_BYTES}, "block_count 13, not 29"),
    ],
)
def test_blocks_of_another_model_layout_or_size_are_replaced(
    used: Path, change: dict[str, object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), closing(opened(used, **change)) as store:  # type: ignore[arg-type]
        assert store.recover() == []
    assert [record.message for record in caplog.records] == [caplog.messages[0]]
    assert said in caplog.messages[0]
    assert str(used) in caplog.messages[0]


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"forebay kv blocks {", "its header is damaged"),
        (b"forebay kv blocks []\n", "its header is damaged"),
        (b'forebay kv blocks {"format_version": 99}\n', "format_version 99, not 1"),
    ],
)
def test_other_versions_and_damaged_headers_are_replaced(
    used: Path, header: bytes, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (used / FILE_NAME).open("r+b") as file:
        file.write(header.ljust(4096, b"\0"))
    with caplog.at_level(logging.WARNING), closing(opened(used)) as store:
        assert store.recover() == []
    assert said in caplog.text


@pytest.mark.parametrize("size_bytes", [0, 4096, 20_000])
def test_what_a_service_killed_while_it_made_the_file_left_is_made_anew(used: Path, size_bytes: int) -> None:
    (used / FILE_NAME).write_bytes(bytes(4096).ljust(size_bytes, b"x")[:size_bytes])
    with closing(opened(used)) as store:
        assert store.recover() == []
        assert (used / FILE_NAME).stat().st_size == store.shape.size_bytes


def test_a_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StartError, match="--disk-dir a folder of its own"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_system_of_its_own_is_as_good_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    opened(tmp_path).close()


def test_a_file_of_that_name_that_is_not_ours_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text("mine")
    with pytest.raises(StartError, match="not a file of Forebay"):
        opened(tmp_path)
    assert (tmp_path / FILE_NAME).read_text() == "mine"


def test_two_services_cannot_share_a_folder_and_a_dead_one_holds_none(used: Path) -> None:
    code = (
        "import sys;from pathlib import Path;from test_kvcache_disk_folder import opened;"
        "store=opened(Path(sys.argv[1]));print(1,flush=True);input()"
    )
    paths = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(used)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        with pytest.raises(StartError, match=r"another KV-cache service uses .* choose another --disk-dir"):
            opened(used)
        holder.kill()
        holder.wait()
        with closing(opened(used)) as store:
            assert store.recover() == [(2, HASH)]


def test_a_full_disk_names_the_flag_and_what_is_there_and_takes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"has \d+ bytes free, \d+ are wanted .* lower --disk-bytes"):
        opened(tmp_path, size_bytes=1 << 43)  # no disk has it, or no file may be so large
    assert (tmp_path / FILE_NAME).stat().st_blocks == 0
    opened(tmp_path).close()


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_size_limit_is_a_start_error(tmp_path: Path) -> None:
    with file_size_limit(SIZE_BYTES // 2), pytest.raises(StartError, match="lower --disk-bytes"):
        opened(tmp_path)


def test_too_small_a_size_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="--disk-bytes 8192 has no room for one block of 4096 bytes"):
        opened(tmp_path, size_bytes=8192)


def test_a_folder_that_cannot_be_made_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"cannot use .* Not a directory; choose another --disk-dir"):
        opened(tmp_path / "file" / "kv")


def test_a_truncated_file_gets_its_size_back_and_loses_what_was_cut(
    used: Path, caplog: pytest.LogCaptureFixture
) -> None:
    os.truncate(used / FILE_NAME, 4096)
    with closing(opened(used)) as store:
        assert (used / FILE_NAME).stat().st_size == store.shape.size_bytes
        assert store.recover() == []
