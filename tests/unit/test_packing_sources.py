"""What one packer made is not used by another: the packed files' versions are those of the sources that decide them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import forebay.models
from forebay.host.source_digest import source_digest

NATIVE, TORCH = "forebay.kernels.cpu.packed_model", "forebay.engine.weights"


@pytest.fixture(scope="module")
def libs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of our sources."""
    copy = tmp_path_factory.mktemp("copy") / "libs"
    shutil.copytree(Path(forebay.models.__file__).parents[2], copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def version(libs: Path, module: str) -> str:
    command = [sys.executable, "-c", f"from {module} import PACKING_VERSION; print(PACKING_VERSION)"]
    environment = {**os.environ, "PYTHONPATH": str(libs), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("module", "sources"),
    [
        (NATIVE, ("kernels/cpu/packed_model.py", "kernels/cpu/tiles.py", "models/gguf.py", "models/model_file.py")),
        (TORCH, ("engine/weights.py", "models/gguf_dequantize.py")),
    ],
    ids=["native", "torch"],
)
def test_another_packer_or_reader_is_another_version(libs: Path, module: str, sources: tuple[str, ...]) -> None:
    seen = [version(libs, module)]
    for source in sources:
        with (libs / "forebay" / source).open("a") as file:
            file.write("\n# another line\n")
        seen.append(version(libs, module))
    assert len(set(seen)) == 1 + len(sources)


def test_a_digest_tells_names_and_contents_apart_and_needs_no_order(tmp_path: Path) -> None:
    contents = {"a": b"one", "b": b"two"}
    folders = [tmp_path / name for name in ("first", "second")]
    for folder, order in zip(folders, (list(contents), list(reversed(contents))), strict=True):
        (folder / "below").mkdir(parents=True)
        for name in order:
            (folder / name).write_bytes(contents[name])
    whole = source_digest(folders[0])
    assert whole == source_digest(folders[1])
    assert whole == source_digest(folders[0] / "a", folders[0] / "b")

    (folders[1] / "b").write_bytes(b"twp")
    assert source_digest(folders[1]) != whole
    (folders[0] / "b").rename(folders[0] / "c")
    assert source_digest(folders[0]) != whole
