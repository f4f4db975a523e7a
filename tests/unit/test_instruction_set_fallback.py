"""A compiler that does not know the widest instruction set costs that set, not the native kernels."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.kernels.cpu.build import built_library, plan_build
from forebay.kernels.cpu.instruction_set import InstructionSet, supported_sets
from forebay.models.cache_folder import cache_dir

LOAD = """
from forebay.errors import ForebayError
from forebay.kernels.cpu.library import load_library
try:
    print(load_library().instruction_set.value, load_library() is load_library())
except ForebayError as error:
    print("refused:", error.message)
"""


@pytest.fixture
def old_compiler(tmp_path: Path) -> Path:
    """Knows no instruction set by name. For what needs none it gives a library that was compiled before."""
    library = built_library(plan_build(InstructionSet.SCALAR), cache_dir() / "native")
    path = tmp_path / "compiler"
    path.write_text(
        "#!/bin/sh\n"
        'for last; do [ "$last" != --version ] || { echo compiler 1.0; exit; }; done\n'
        'echo "$@" >> "$0.calls"\n'
        'case "$*" in *" -mavx"*) echo "error: unrecognized command line option" >&2; exit 1;; esac\n'
        f'[ -z "$BREAKS_ALL" ] || {{ echo "error: no header" >&2; exit 1; }}\ncp {library} "$last"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def load(compiler: Path, **environment: str) -> tuple[str, str]:
    """What a process that loads the kernels twice says on stdout and stderr; it has a cache of its own."""
    cache = {"CXX": str(compiler), "FOREBAY_CACHE": str(compiler.parent / "cache")}
    unnamed = {name: value for name, value in os.environ.items() if name != "FOREBAY_INSTRUCTION_SET"}
    command = [sys.executable, "-c", LOAD]
    result = subprocess.run(
        command, env={**unnamed, **cache, **environment}, capture_output=True, text=True, check=True
    )
    return result.stdout.strip(), result.stderr


def test_the_widest_set_that_compiles_is_taken_and_it_is_said_once_why(old_compiler: Path) -> None:
    said, logged = load(old_compiler)

    assert said == "scalar True"
    wider = [one.value for one in supported_sets()[:-1]]
    assert logged.count("native kernels for scalar are taken") == (1 if wider else 0)
    assert logged.count("unrecognized command line option") == len(wider)
    assert all(f"for {name} do not compile" in logged for name in wider)
    assert len(old_compiler.with_suffix(".calls").read_text().splitlines()) == len(wider) + 1, "tried again"


def test_where_nothing_compiles_all_reasons_are_told(old_compiler: Path) -> None:
    said, _ = load(old_compiler, BREAKS_ALL="1")

    assert said.startswith("refused: ")
    assert "for scalar do not compile (compiler 1.0): error: no header" in said
    assert said.count("do not compile") == len(supported_sets())


@pytest.mark.skipif(len(supported_sets()) == 1, reason="this machine has no wider set to name")
def test_a_set_that_was_named_is_not_replaced(old_compiler: Path) -> None:
    named = supported_sets()[0].value

    said, _ = load(old_compiler, FOREBAY_INSTRUCTION_SET=named)

    assert said.startswith(f"refused: the native kernels for {named} do not compile")
