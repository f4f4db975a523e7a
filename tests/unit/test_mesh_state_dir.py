"""Where a mesh keeps its things, and that only one command at a time may change them."""

import subprocess
import sys
from pathlib import Path

import pytest

from forebay.errors import StartError
from forebay.mesh.state_dir import find_state_dir, locked


def test_the_variable_wins(tmp_path: Path) -> None:
    (tmp_path / ".forebay").mkdir()
    assert find_state_dir({"FOREBAY_STATE_DIR": "/some/where"}, tmp_path) == Path("/some/where")
    assert find_state_dir({"FOREBAY_STATE_DIR": "~/x"}, tmp_path) == Path.home() / "x"


def test_the_nearest_folder_upwards_is_taken(tmp_path: Path) -> None:
    (tmp_path / ".forebay").mkdir()
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_state_dir({}, deep) == tmp_path / ".forebay"
    (tmp_path / "a" / ".forebay").mkdir()
    assert find_state_dir({}, deep) == tmp_path / "a" / ".forebay"


def test_without_any_it_is_made_here(tmp_path: Path) -> None:
    deep = tmp_path / "a"
    deep.mkdir()
    (tmp_path / ".forebay").write_text("a file, not a folder")
    assert find_state_dir({"FOREBAY_STATE_DIR": ""}, deep) == deep / ".forebay"


HOLDER = """
import pathlib, signal, sys
from forebay.mesh.state_dir import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    signal.pause()
"""


def test_the_lock_is_waited_for_and_dies_with_its_holder(tmp_path: Path) -> None:
    waits: list[str] = []
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"

            def on_wait() -> None:
                waits.append("waited")
                holder.kill()

            with locked(tmp_path, on_wait):
                assert waits == ["waited"]
            with locked(tmp_path, on_wait):
                assert waits == ["waited"]
        finally:
            holder.kill()


def test_a_file_in_the_folders_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(StartError, match="FOREBAY_STATE_DIR"), locked(tmp_path / "x"):
        pass
