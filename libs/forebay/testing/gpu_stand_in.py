"""Compiles the stand-in for a GPU's runtime."""

import shutil
import subprocess
from pathlib import Path

from forebay.host.shared_memory import FOLDER

_SOURCE = Path(__file__).with_name("gpu_stand_in.c")


def build_gpu_stand_in(folder: Path) -> Path | None:
    """The library, made in the folder; None: there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "libgpu-stand-in.so"
    command = [compiler, "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, "-o", str(library), str(_SOURCE)], check=True)  # noqa: S603  # our own source
    return library


def clear_gpu_stand_in(pid: int) -> None:
    """Removes what a killed process left; a real GPU's driver does it."""
    for path in Path(FOLDER).glob(f"forebay-stand-in-gpu-{pid}-*"):
        path.unlink()
