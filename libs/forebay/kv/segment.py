"""Where a tier's memory is. Knows a name and sizes; maps nothing."""

from dataclasses import dataclass

from forebay.kv.tier import Tier


@dataclass(frozen=True, slots=True)
class MemorySegment:
    """POSIX shared memory named `shm_name`; block i begins at i * block_stride_bytes."""

    tier: Tier
    shm_name: str
    size_bytes: int
    block_stride_bytes: int
    block_count: int
