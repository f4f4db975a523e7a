"""Locks end with their process, files are whole, and names of shared memory belong to one node."""

import fcntl
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from forebay.host import shared_memory
from forebay.host.file_lock import locked, try_lock
from forebay.host.whole_file import write_whole, writing_whole

HOLDER = """
import sys
from pathlib import Path
from forebay.host.file_lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    input()
"""


def test_a_lock_waits_for_another_process_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waits: list[int | None] = []

        def end_the_holder() -> None:
            waits.append(holder.poll())
            holder.kill()

        with locked(path, end_the_holder), path.open() as other:
            assert waits == [None], "it was held by a living process"
            assert not try_lock(other.fileno())
    with path.open() as free:
        assert try_lock(free.fileno())
        fcntl.flock(free, fcntl.LOCK_UN)


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with writing_whole(path) as file:
        file.write(b"first")
        assert not path.exists()
    assert path.read_bytes() == b"first"
    write_whole(path, b"second")
    with suppress(ZeroDivisionError), writing_whole(path) as file:
        file.write(b"half of the th")
        raise ZeroDivisionError
    assert path.read_bytes() == b"second"
    assert list(path.parent.iterdir()) == [path], "nothing else is left"


def test_segments_are_found_by_their_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    names = [shared_memory.segment_name("n", tier) for tier in ("device", "host")]
    names += [*map(shared_memory.index_name, names), shared_memory.segment_name("n", shared_memory.CORES)]
    ours = [shared_memory.segment_path(name) for name in names]
    others = [
        shared_memory.segment_path(shared_memory.segment_name(node_id, "device")) for node_id in ("m", "n-1", "n-host")
    ]
    for path in (*ours, *others):
        path.touch()
    assert sorted(shared_memory.segments_of("n")) == sorted(ours)
    assert shared_memory.remove_segments("n") == len(ours)
    assert sorted(tmp_path.iterdir()) == sorted(others)
