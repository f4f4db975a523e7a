"""Compiling the native library: once, in the cache, or a reason why not."""

import stat

import pytest

from forebay.kernels.cpu.build import NativeUnavailableError, built_library, plan_build
from forebay.kernels.cpu.instruction_set import InstructionSet, cpu_flags, supported_sets
from forebay.kernels.cpu.library import NativeLibrary, load_library


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Makes a shell script the compiler; it writes its arguments beside itself."""

    def make(body):
        path = tmp_path / "compiler"
        path.write_text(f'#!/bin/sh\ncase "$*" in *--version) echo compiler 1.0; exit;; esac\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", f"{path} -DNAMED=1")
        return path

    return make


COUNT_AND_WRITE = 'echo "$@" >> "$0.calls"; for last; do :; done; echo library > "$last"'


def test_it_compiles_once_and_says_so(compiler, tmp_path):
    calls = compiler(COUNT_AND_WRITE).with_suffix(".calls")
    lines = []

    paths = {built_library(plan_build(InstructionSet.AVX2), tmp_path / "cache", lines.append) for _ in range(2)}

    assert len(paths) == 1
    assert len(lines) == 1
    (command,) = calls.read_text().splitlines()
    assert command.startswith("-DNAMED=1 ")
    assert "-mavx2" in command
    assert "-march" not in command
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")] == [".so"]


def test_each_instruction_set_and_flavour_has_its_own_file(compiler):
    compiler("exit 1")

    names = {plan_build(one, is_sanitized).file_name for one in InstructionSet for is_sanitized in (False, True)}

    assert len(names) == 2 * len(InstructionSet)


def test_without_a_compiler_the_reason_says_what_to_do(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")

    with pytest.raises(NativeUnavailableError, match="install one or set CXX"):
        plan_build(InstructionSet.SCALAR)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(compiler, tmp_path):
    compiler('echo "x.cpp:1: error: no such thing" >&2; exit 1')

    with pytest.raises(NativeUnavailableError, match="no such thing"):
        built_library(plan_build(InstructionSet.SCALAR), tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_a_folder_that_cannot_be_written_is_named(compiler, tmp_path):
    compiler(COUNT_AND_WRITE)
    (tmp_path / "cache").write_text("a file where the folder should be")

    with pytest.raises(NativeUnavailableError, match="set FOREBAY_CACHE"):
        built_library(plan_build(InstructionSet.SCALAR), tmp_path / "cache")


def test_a_library_that_cannot_be_loaded_is_named(tmp_path):
    (tmp_path / "broken.so").write_text("not a library")

    with pytest.raises(NativeUnavailableError, match=r"broken\.so"):
        NativeLibrary(tmp_path / "broken.so")


@pytest.mark.parametrize("one", supported_sets())
def test_a_build_is_for_the_set_asked_for(one):
    assert load_library(one).instruction_set is one


def test_a_set_that_the_cpu_lacks_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("forebay.kernels.cpu.library.supported_sets", lambda: [InstructionSet.SCALAR])

    with pytest.raises(NativeUnavailableError, match="it can run: scalar"):
        load_library(InstructionSet.AVX512)


def test_an_unknown_name_in_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("FOREBAY_INSTRUCTION_SET", "mmx")

    with pytest.raises(NativeUnavailableError, match="choose one of: avx512, avx2, scalar"):
        load_library()


@pytest.mark.parametrize(
    ("flags", "widest"),
    [
        ("fpu sse2", InstructionSet.SCALAR),
        ("fpu avx2 fma f16c", InstructionSet.AVX2),
        ("avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni", InstructionSet.AVX2),
        ("avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni avx512_bf16", InstructionSet.AVX512),
    ],
)
def test_the_widest_set_that_the_flags_allow(tmp_path, flags, widest):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n\nprocessor : 1\nflags : none\n")

    found = cpu_flags(tmp_path / "cpuinfo")

    assert next(one for one in InstructionSet if one.is_supported_by(found)) is widest


def test_a_system_that_tells_no_flags_gets_the_scalar_kernels(tmp_path):
    assert cpu_flags(tmp_path / "missing") == frozenset()
