"""A process that writes blocks to disk is killed with -9 again and again: never wrong bytes, nothing whole is lost."""

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from forebay.errors import BlockCorruptError
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kvcache.disk.folder import open_folder
from forebay.kvcache.disk.store import DiskStore

LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=30, kv_heads=3, head_dim=64)
SLOT_COUNT = 8
KILLS = 60

WRITER = """
import os, random, sys
from pathlib import Path
from test_kvcache_disk_kill import SLOT_COUNT, content, opened
store = opened(Path(sys.argv[1]))
store.recover()
print("open", flush=True)
while True:
    slot, block_hash = random.randrange(SLOT_COUNT), os.urandom(16)
    store.write(slot, block_hash, content(block_hash))
    print(slot, block_hash.hex(), flush=True)
"""


def content(block_hash: bytes) -> memoryview:
    """What alone belongs under this hash."""
    return memoryview(block_hash * (LAYOUT.block_bytes // len(block_hash)))


def opened(folder: Path) -> DiskStore:
    return open_folder(folder, (SLOT_COUNT + 1) * LAYOUT.block_bytes, "model", LAYOUT)


@contextmanager
def writer(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    path = ":".join([*sys.path, str(Path(__file__).parent)])
    command = [sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": path}) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            yield process
        finally:
            process.kill()


def killed_while_writing(folder: Path, source: random.Random) -> list[tuple[int, bytes]]:
    """What the process said it had written, in order."""
    with writer(folder) as process:
        assert process.stdout is not None
        heard = [process.stdout.readline() for _ in range(source.randrange(12))]
        # A moment that no line marks: anywhere in the next write or two.
        for _ in range(source.randrange(20_000)):
            pass
        process.kill()
        heard += process.stdout.readlines()
    words = [line.split() for line in heard if line.endswith("\n")]
    return [(int(slot), bytes.fromhex(block_hash)) for slot, block_hash in words]


def test_no_kill_makes_a_block_wrong_or_loses_one_that_was_written(tmp_path: Path) -> None:
    source, holds = random.Random(4), dict[int, bytes]()
    served_count = cut_short_count = 0
    for _ in range(KILLS):
        holds |= dict(killed_while_writing(tmp_path, source))
        with closing(opened(tmp_path)) as store:
            found = dict(store.recover())
            into = bytearray(LAYOUT.block_bytes)
            for slot, block_hash in found.items():
                try:
                    store.read(slot, block_hash, memoryview(into))
                except BlockCorruptError:
                    continue
                assert into == content(block_hash), "wrong bytes were served"
                served_count += 1
        # At most one write was under way, or done and not yet told.
        changed = [slot for slot in holds if found.get(slot) != holds[slot]]
        assert len(changed) <= 1
        cut_short_count += any(slot not in found for slot in changed)
        holds = found
    assert served_count > KILLS
    assert cut_short_count > 0, "some kills must have met a write"
