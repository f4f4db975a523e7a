"""The heap keeps what is freed."""

import subprocess
import sys

CODE = """
import resource
from forebay.host.heap import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        pieces = [bytearray(4 * 2**20) for _ in range(4)]
        for piece in pieces:
            piece[::4096] = b"x" * 1024
        del pieces, piece
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

by_default = faults()
assert keep_freed_memory()
faults()
print(by_default, faults())
"""


def test_memory_used_again_has_no_faults() -> None:
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    by_default, kept = map(int, run.stdout.split())
    assert by_default > 10_000
    assert kept < 100
