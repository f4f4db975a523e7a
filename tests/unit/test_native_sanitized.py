"""The kernels under the address and undefined-behaviour sanitizers: their own tests again, in their own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.kernels.cpu.build import NativeUnavailableError, plan_build
from forebay.kernels.cpu.instruction_set import supported_sets

HERE = Path(__file__).parent
STEP_TESTS = ["test_native_step.py"]
TESTS = [
    "test_native_kernels.py",
    "test_native_tiles.py",
    "test_native_invariance.py",
    "test_native_convert.py",
    "test_native_sampler.py",
    "test_native_choices.py",
    *STEP_TESTS,
]


def runtimes():
    """The sanitizers' libraries, which must be loaded before Python itself; none where the compiler has none."""
    try:
        compiler = plan_build(supported_sets()[0]).compiler
    except NativeUnavailableError:
        return []
    names = ("libasan.so", "libubsan.so")
    found = [
        subprocess.run(
            [*compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    ]
    return [path for path in found if Path(path).is_absolute()]


pytestmark = pytest.mark.skipif(len(runtimes()) < 2, reason="this compiler has no sanitizer runtimes")


def start_sanitized(instruction_set, tests, *options):
    """Those tests in a process of their own, drawn ones with few examples."""
    environment = os.environ | {
        "LD_PRELOAD": ":".join(runtimes()),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "FOREBAY_NATIVE_SANITIZED": "1",
        "FOREBAY_INSTRUCTION_SET": instruction_set.value,
    }
    command = [sys.executable, "-m", "pytest", "-x", "--hypothesis-profile=few", *options]
    command += [str(HERE / name) for name in tests]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def assert_nothing_found(processes):
    try:
        outputs = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-6000:]
        assert "runtime error" not in output


def test_the_sanitizers_find_nothing():
    # Only the widest kernels, and no model whose size shows nothing more.
    unwanted = ["real_model", *(narrower.value for narrower in supported_sets()[1:])]

    process = start_sanitized(supported_sets()[0], TESTS, "-k", " and ".join(f"not {name}" for name in unwanted))

    assert_nothing_found([process])


def test_they_find_nothing_in_whole_steps_of_narrower_kernels():
    # At once, since most of the time goes into compiling.
    processes = [start_sanitized(narrower, STEP_TESTS) for narrower in supported_sets()[1:]]

    assert_nothing_found(processes)
