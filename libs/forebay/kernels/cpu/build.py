"""Compiles the native library with the system's C++ compiler, once per source, compiler and instruction set.

Knows the compiler's command line and the cache folder; not what the library does.
"""

import hashlib
import logging
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from forebay.errors import StartError
from forebay.host.file_lock import locked
from forebay.host.source_digest import source_digest
from forebay.host.whole_file import making_whole
from forebay.kernels.cpu.instruction_set import InstructionSet

Progress = Callable[[str], None]
"""Told one line before each slow thing."""

_SOURCE_FOLDER = Path(__file__).parent / "native"
_COMPILE_TIMEOUT_S = 300.0
# Without -ffp-contract=off the compiler would fuse multiplications and additions in one place and not in another, and
# results would depend on how many rows are computed together.
_FLAGS = ("-std=c++17", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-fvisibility=default")
_SANITIZER_FLAGS = (
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
    "-fno-omit-frame-pointer",
    "-g1",
)

_log = logging.getLogger(__name__)


class NativeUnavailableError(StartError):
    """The native library cannot be had on this machine; the message says why. The torch engine still works."""


class CompileError(NativeUnavailableError):
    """The compiler refused the sources or its flags; it may take those of another instruction set."""


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """One compilation: everything that decides what comes out."""

    compiler: tuple[str, ...]
    compiler_version: str
    instruction_set: InstructionSet
    is_sanitized: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """All flags but the names of sources and output."""
        return (*_FLAGS, *self.instruction_set.compiler_flags, *(_SANITIZER_FLAGS if self.is_sanitized else ("-O3",)))

    @property
    def file_name(self) -> str:
        """Name of the library in the cache; differs whenever sources, compiler or flags do."""
        parts = (source_digest(_SOURCE_FOLDER), self.compiler, self.compiler_version, self.flags)
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
        flavour = "-sanitized" if self.is_sanitized else ""
        return f"forebay-{self.instruction_set.value}{flavour}-{digest[:16]}.so"


def plan_build(instruction_set: InstructionSet, is_sanitized: bool = False) -> BuildPlan:
    """A build with the compiler that CXX names, else g++ or c++.

    Raises:
        NativeUnavailableError: there is no C++ compiler.
    """
    compiler = _find_compiler()
    try:
        # Safe: no shell; the command is the operator's own compiler.
        result = subprocess.run([*compiler, "--version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"the C++ compiler {compiler[0]} cannot be run: {error}") from None
    return BuildPlan(compiler, result.stdout.partition("\n")[0], instruction_set, is_sanitized)


def built_library(plan: BuildPlan, folder: Path, progress: Progress = lambda line: None) -> Path:
    """Path of the compiled library in `folder`, compiled first if it is not there.

    Safe when several processes ask at once: one compiles, the others wait for it.

    Raises:
        CompileError: it does not compile.
        NativeUnavailableError: the compiler does not end, or the folder cannot be written.
    """
    path = folder / plan.file_name
    if path.is_file():
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{plan.file_name}.lock"):
            if not path.is_file():
                progress(f"compiling the native kernels for {plan.instruction_set.value} (half a minute, once)")
                with making_whole(path) as partial:
                    _compile(plan, partial)
    except OSError as error:
        raise NativeUnavailableError(f"{folder}: cannot be written ({error.strerror}); set FOREBAY_CACHE") from None
    return path


def _find_compiler() -> tuple[str, ...]:
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in [named] if named else [["g++"], ["c++"]]:
        if found := shutil.which(candidate[0]):
            return (found, *candidate[1:])
    wanted = named[0] if named else "g++ or c++"
    raise NativeUnavailableError(f"no C++ compiler ({wanted}) was found; install one or set CXX")


def _compile(plan: BuildPlan, path: Path) -> None:
    sources = [str(source) for source in sorted(_SOURCE_FOLDER.glob("*.cpp"))]
    command = [*plan.compiler, *plan.flags, *sources, "-o", str(path)]
    try:
        # Safe: no shell; sources are ours and the compiler is the operator's.
        result = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise NativeUnavailableError(f"{plan.compiler[0]} did not end within {_COMPILE_TIMEOUT_S:.0f} s") from None
    if result.returncode:
        lines = result.stderr.splitlines()
        cause = next((line for line in lines if "error" in line), lines[0] if lines else "no reason given")
        _log.debug("compiler output: %s", result.stderr)
        name = plan.instruction_set.value
        raise CompileError(f"the native kernels for {name} do not compile ({plan.compiler_version}): {cause}")
