"""Another engine as a contestant: installed, loaded in a process of its own, and asked over its pipes."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from forebay.host.cores import usable_cores
from scripts.benchmarks.answering_process import AnsweringProcess
from scripts.benchmarks.generation import Generation
from scripts.benchmarks.peer_packages import PeerPackage, install_peer

_OURS = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables that say where our packages are and how our threads behave: nothing that a peer should know."""


class Peer:
    """One loaded peer."""

    def __init__(self, process: AnsweringProcess) -> None:
        self.process = process

    def generate(self, prompts: list[list[int]], steps: int) -> Generation:
        """As Contestant.generate."""
        answer = self.process.ask({"do": "generate", "prompts": prompts, "steps": steps})
        return Generation(
            sequences=len(prompts),
            prompt_tokens=len(prompts[0]),
            prefill_s=answer["prefill_s"],
            step_s=tuple(answer["step_s"]),
            first_token_ids=tuple(answer["first_token_ids"]),
        )

    def score(self, token_ids: Sequence[int], path: Path) -> None:
        """Writes the raw float32 logits after each of the tokens."""
        self.process.ask({"do": "score", "token_ids": list(token_ids), "path": str(path)})


def start_peer(package: PeerPackage, arguments: Sequence[str], progress: Callable[[str], None]) -> AnsweringProcess:
    """Installs the peer if need be, and loads it, to use as many cores as we do. Raises ContestantAbsentError."""
    install_peer(package, progress)
    progress(f"loading {package.name}")
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    programs = package.environment.absolute() / "bin"
    process = AnsweringProcess(
        # Not resolved: the environment's Python is a link, and knows by its path where its packages are.
        [str(programs / "python"), "-m", package.script, *arguments, "--threads", str(usable_cores())],
        {**kept, "PATH": f"{programs}:{kept['PATH']}"},
        package.environment.with_name(f"{package.folder}-run.log"),
    )
    progress(f"{package.name} {process.configuration}")
    return process
