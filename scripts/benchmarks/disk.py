"""The DISK tier's store beside `dd` of the same file: reads with the page cache dropped, writes, and recovery.

A file of 1,024 blocks of the default model (737,280 bytes each) in .bench/. A round reads all of it with dd, then all
blocks in the order of their slots; again with dd, then all blocks in random order. Blocks go through the queue, their
digests are verified, the page cache is dropped before each reading, and that the bytes came from the disk is checked.
It writes all blocks, and as much with dd from a file in memory, each over a file that is there, with fdatasync in the
time. A virtual disk may have good and bad moments, so medians are compared and the best of each too.

Examples:
  scripts/bench disk               five rounds
  scripts/bench disk --rounds 20   steadier medians
"""

import asyncio
import mmap
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from forebay.host.shared_memory import FOLDER
from forebay.kvcache.disk.block_file import OpenFile
from forebay.kvcache.disk.folder import FILE_NAME, open_folder
from forebay.kvcache.disk.queue import DiskQueue
from forebay.kvcache.disk.record import SlotRecord
from forebay.kvcache.disk.shape import HEADER_BYTES, FileShape
from forebay.kvcache.disk.store import DiskStore
from scripts.benchmarks.kv_blocks import LAYOUT
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report

_BLOCK_COUNT = 1024
_BLOCKS_BYTES = _BLOCK_COUNT * LAYOUT.block_bytes
_IN_MEMORY_COUNT = 16
"""Blocks that are asked for at a time, each with memory of its own, as by a few requests that wait for theirs."""
_RECOVERED_COUNT = 1_000_000
_IN_ORDER, _AT_RANDOM = "read, slots in order", "read, slots at random"


def run(options: Options) -> None:
    """`rounds` rounds of reads and writes; then as many recoveries of a million slots."""
    bench = Path(".bench")
    bench.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="disk-", dir=bench) as folder,
        tempfile.NamedTemporaryFile(prefix="forebay-bench-", dir=FOLDER) as source,
    ):
        for _ in range(_BLOCK_COUNT):
            source.write(os.urandom(LAYOUT.block_bytes))
        source.flush()
        rates = asyncio.run(_rounds(Path(folder) / "kv", Path(source.name), options.rounds))
        recovery_s = _recoveries(Path(folder) / "records", options.rounds)
    report("disk", _figures(rates, recovery_s))


def _figures(rates: dict[str, list[float]], recovery_s: list[float]) -> list[Figure]:
    def share(name: str, of: Callable[[Sequence[float]], float]) -> float:
        return of(rates[name]) / of(rates[f"dd {name.partition(',')[0]}"])

    rows = []
    for name, values in rates.items():
        rows += [Figure(name, median(values), "GB/s"), Figure("  best", max(values), "GB/s")]
    for name, target in ((_IN_ORDER, ">= 0.8"), (_AT_RANDOM, None), ("write", None)):
        rows += [Figure(f"{name}: of dd", share(name, median), "", target), Figure("  best", share(name, max), "")]
    return [*rows, Figure("recovery of 1,000,000 blocks", median(recovery_s), "s")]


async def _rounds(folder: Path, source: Path, count: int) -> dict[str, list[float]]:
    path = folder / FILE_NAME
    memory = [_touched(LAYOUT.block_bytes) for _ in range(_IN_MEMORY_COUNT)]
    with closing(open_folder(folder, _BLOCKS_BYTES + (1 << 20), "bench", LAYOUT)) as store:
        store.recover()
        queue = DiskQueue(store)
        in_order, shuffled = list(range(_BLOCK_COUNT)), random.Random(1).sample(range(_BLOCK_COUNT), _BLOCK_COUNT)
        await _write(queue, memory, in_order, path)
        _dd_write(source, path.with_name("written by dd"))
        rates: dict[str, list[float]] = {}
        for _ in range(count):
            for name, slots in ((_IN_ORDER, in_order), (_AT_RANDOM, shuffled)):
                rates.setdefault("dd read", []).append(_dd_read(path))
                rates.setdefault(name, []).append(await _read(queue, memory, slots, path))
            rates.setdefault("dd write", []).append(_dd_write(source, path.with_name("written by dd")))
            rates.setdefault("write", []).append(await _write(queue, memory, in_order, path))
        await queue.close()
        return rates


async def _read(queue: DiskQueue, memory: list[memoryview], slots: Sequence[int], path: Path) -> float:
    _drop_cache(path)
    left, before_bytes, began_s = iter(slots), _from_disk_bytes(), time.perf_counter()

    async def lane(into: memoryview) -> None:
        for slot in left:
            await queue.read(slot, _hash(slot), into, flow=slot % 4)

    await asyncio.gather(*(lane(each) for each in memory))
    seconds = time.perf_counter() - began_s
    if _from_disk_bytes() - before_bytes < 0.99 * _BLOCKS_BYTES:
        raise RuntimeError(f"{path} was in the page cache, which could not be dropped")
    return _BLOCKS_BYTES / seconds / 1e9


async def _write(queue: DiskQueue, memory: list[memoryview], slots: Sequence[int], path: Path) -> float:
    left, began_s = iter(slots), time.perf_counter()

    async def lane(data: memoryview) -> None:
        for slot in left:
            await queue.write(slot, _hash(slot), data, flow="write-back")

    await asyncio.gather(*(lane(each) for each in memory))
    _sync(path)
    return _BLOCKS_BYTES / (time.perf_counter() - began_s) / 1e9


def _dd_read(path: Path) -> float:
    _drop_cache(path)
    return _timed(lambda: _dd(f"if={path}", "of=/dev/null"), path.stat().st_size)


def _dd_write(source: Path, path: Path) -> float:
    return _timed(lambda: _dd(f"if={source}", f"of={path}", "conv=fdatasync,notrunc"), _BLOCKS_BYTES)


def _dd(*arguments: str) -> None:
    subprocess.run(["dd", f"bs={LAYOUT.block_bytes}", *arguments], check=True, capture_output=True)


def _timed(act: Callable[[], None], size_bytes: int) -> float:
    began_s = time.perf_counter()
    act()
    return size_bytes / (time.perf_counter() - began_s) / 1e9


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fdatasync(file.fileno())


def _drop_cache(path: Path) -> None:
    with path.open("rb") as file:
        os.fdatasync(file.fileno())  # what is not on disk yet stays in the cache
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _from_disk_bytes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def _touched(size_bytes: int) -> memoryview:
    memory = memoryview(mmap.mmap(-1, size_bytes))
    memory[:] = os.urandom(size_bytes)
    return memory


def _hash(slot: int) -> bytes:
    return slot.to_bytes(16, "big")


def _recoveries(path: Path, count: int) -> list[float]:
    shape = FileShape(block_bytes=LAYOUT.block_bytes, block_count=_RECOVERED_COUNT)
    with path.open("wb") as file:
        file.truncate(shape.data_offset)
        file.seek(HEADER_BYTES)
        file.writelines(_records())
    return [_recovery_s(path, shape) for _ in range(count)]


def _records() -> Iterator[bytes]:
    """Of a full file whose slots were written in random order."""
    source = random.Random(1)
    for slot, write_number in enumerate(source.sample(range(_RECOVERED_COUNT), _RECOVERED_COUNT)):
        yield SlotRecord(write_number, source.randbytes(16), bytes(16)).encoded(slot)


def _recovery_s(path: Path, shape: FileShape) -> float:
    _drop_cache(path)
    with closing(DiskStore(OpenFile(os.open(path, os.O_RDONLY)), shape)) as store:
        began_s = time.perf_counter()
        found = store.recover()
        seconds = time.perf_counter() - began_s
    if len(found) != _RECOVERED_COUNT:
        raise RuntimeError(f"{len(found)} blocks were recovered of {_RECOVERED_COUNT}")
    return seconds
