"""The kernels under the address and undefined-behaviour sanitizers: their own tests again, in their own process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.kernels.cpu.build import NativeUnavailableError, plan_build
from forebay.kernels.cpu.instruction_set import supported_sets

HERE = Path(__file__).parent
TESTS = ["test_native_kernels.py", "test_native_tiles.py", "test_native_invariance.py", "test_native_convert.py"]


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


@pytest.mark.skipif(len(runtimes()) < 2, reason="this compiler has no sanitizer runtimes")
def test_the_sanitizers_find_nothing():
    environment = os.environ | {
        "LD_PRELOAD": ":".join(runtimes()),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "FOREBAY_NATIVE_SANITIZED": "1",
        "FOREBAY_INSTRUCTION_SET": supported_sets()[0].value,
    }
    # Only the widest kernels, and no model whose size shows nothing more.
    unwanted = ["real_model", *(narrower.value for narrower in supported_sets()[1:])]
    command = [sys.executable, "-m", "pytest", "-x", *(str(HERE / name) for name in TESTS)]
    command += ["-k", " and ".join(f"not {name}" for name in unwanted)]

    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=280)

    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "runtime error" not in result.stdout + result.stderr
