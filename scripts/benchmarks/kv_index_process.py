"""One block index of a million blocks in a process of its own: its bytes per block, and the time to find a prefix.

Started by `kv_core` with the index's name; prints one line of JSON. Resident memory is counted, not requests for it.
"""

import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from forebay.kv.eviction.least_frequently_used import LeastFrequentlyUsed
from forebay.kv.eviction.least_recently_used import LeastRecentlyUsed
from forebay.kv.eviction.policy import NewPolicy
from forebay.kv.eviction.reuse_rate import LowestReuseRate
from forebay.kv.eviction.s3_fifo import S3Fifo
from forebay.kv.pool import BlockPool
from forebay.kv.tier import Tier
from forebay.routing.prefix_index import PrefixIndex

BLOCKS: Final = 1_000_000
PREFIX_BLOCKS: Final = 4_096
_CHANGES: Final = 2  # times that every block is replaced
_FINDS: Final = 9

Add = Callable[[Sequence[bytes]], None]
Find = Callable[[Sequence[bytes]], object]


def _pool(policy: NewPolicy) -> tuple[Add, Find]:
    pool = BlockPool(Tier.DEVICE, BLOCKS, policy)

    def add(hashes: Sequence[bytes]) -> None:
        for block in pool.coldest(max(0, len(hashes) - pool.free_count)):
            pool.drop(block)
        blocks = pool.lease(len(hashes))
        for block, block_hash in zip(blocks, hashes, strict=True):
            pool.seal(block, block_hash)
        pool.unreference(blocks[::-1])

    return add, pool.find_each


def _prefix_index() -> tuple[Add, Find]:
    index = PrefixIndex(BLOCKS)
    return lambda hashes: index.store("node", Tier.DEVICE, hashes), index.match


INDEXES: Final[Mapping[str, Callable[[], tuple[Add, Find]]]] = {
    "reuse rate": lambda: _pool(LowestReuseRate),
    "LRU": lambda: _pool(LeastRecentlyUsed),
    "LFU": lambda: _pool(LeastFrequentlyUsed),
    "S3-FIFO": lambda: _pool(S3Fifo),
    "router": _prefix_index,
}


def main() -> None:
    """Fills the index named, replaces all its blocks, and says what it holds."""
    gc.collect()
    before = _resident_bytes()
    add, find = INDEXES[sys.argv[1]]()
    _fill(add, BLOCKS)
    filled = _resident_bytes() - before
    _fill(add, _CHANGES * BLOCKS)
    changed = _resident_bytes() - before
    prefixes = [_fill(add, PREFIX_BLOCKS) for _ in range(_FINDS)]
    _fill(add, BLOCKS // 4)  # so that they are not in the processor's caches
    asked = [[bytes(bytearray(each)) for each in prefix] for prefix in prefixes]  # equal, not the same objects
    seconds = [(_seconds(find, prefix), _seconds(find, prefix)) for prefix in asked]
    answer = {
        "filled": filled / BLOCKS,
        "changed": changed / BLOCKS,
        "find_s": statistics.median(first for first, _ in seconds),
        "find_again_s": statistics.median(again for _, again in seconds),
    }
    print(json.dumps(answer))


def _fill(add: Add, count: int) -> list[bytes]:
    """Adds blocks, a prompt of at most 1,000 at a time; returns the last hashes."""
    hashes: list[bytes] = []
    for start in range(0, count, 1_000):
        some = [os.urandom(16) for _ in range(min(1_000, count - start))]
        add(some)
        hashes = (hashes + some)[-PREFIX_BLOCKS:]
    return hashes


def _seconds(find: Find, prefix: Sequence[bytes]) -> float:
    began_s = time.perf_counter()
    find(prefix)
    return time.perf_counter() - began_s


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
