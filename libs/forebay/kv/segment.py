"""Where a tier's memory is. Knows a name and sizes; maps nothing."""

from dataclasses import dataclass

from forebay.kv.tier import Tier


@dataclass(frozen=True, slots=True)
class MemorySegment:
    """Memory whose block i begins at i * block_stride_bytes.

    device: "cpu": POSIX shared memory named `shm_name`; "cuda:0", "hip:1": an allocation there, opened by `ipc_handle`.
    """

    tier: Tier
    shm_name: str
    size_bytes: int
    block_stride_bytes: int
    block_count: int
    device: str = "cpu"
    ipc_handle: bytes = b""
