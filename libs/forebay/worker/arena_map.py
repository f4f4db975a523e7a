"""Maps the KV memory that the node's KV-cache service owns. The worker never creates, resizes, unlinks or frees it."""

import mmap
import os

from forebay.errors import StartError
from forebay.host.gpu_memory import OpenedGpuMemory
from forebay.host.gpu_runtime import GpuError
from forebay.host.shared_memory import segment_path
from forebay.kv.segment import MemorySegment


def open_segment(segment: MemorySegment, block_bytes: int, device_type: str) -> memoryview | OpenedGpuMemory:
    """The segment's bytes where a worker on that type of device ("cpu", "cuda", "hip") can compute with them.

    Raises StartError: they lie on another type of device, or as `map_segment` and OpenedGpuMemory say.
    """
    its_type = segment.device.partition(":")[0]
    if its_type != device_type:
        raise StartError(
            f"the node's KV memory lies on {segment.device}, and this worker's chip class computes on {device_type};"
            f" start the KV-cache service with another --device, or the worker with another --chip-class"
        )
    if its_type == "cpu":
        return memoryview(map_segment(segment, block_bytes))
    _check_stride(segment, block_bytes)
    try:
        return OpenedGpuMemory(segment.device, segment.ipc_handle, segment.size_bytes)
    except GpuError as error:
        raise StartError(f"the node's KV memory on {segment.device} cannot be opened: {error}") from error


def map_segment(segment: MemorySegment, block_bytes: int) -> mmap.mmap:
    """The segment's bytes, writable and shared.

    Opened as a file, not by multiprocessing.shared_memory, whose resource tracker would unlink it at our exit.
    Raises StartError when it is not there, too small, or its blocks are smaller than this worker's.
    """
    _check_stride(segment, block_bytes)
    path = segment_path(segment.shm_name)
    needed_bytes = segment.block_stride_bytes * segment.block_count
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise StartError(
            f"cannot open shared memory {segment.shm_name}: {error.strerror}; the worker must run on the node of its"
            " KV-cache service and share its /dev/shm"
        ) from error
    try:
        size_bytes = os.fstat(file).st_size
        if not needed_bytes <= segment.size_bytes <= size_bytes:
            raise StartError(
                f"shared memory {segment.shm_name} has {size_bytes} bytes, {needed_bytes} are needed; give the node a"
                " larger /dev/shm or the KV-cache service less to hold"
            )
        return mmap.mmap(file, segment.size_bytes, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(file)


def _check_stride(segment: MemorySegment, block_bytes: int) -> None:
    if segment.block_stride_bytes < block_bytes:
        raise StartError(
            f"blocks of the KV-cache service hold {segment.block_stride_bytes} bytes, this worker's layout needs"
            f" {block_bytes}; start both with the same --model and --chip-class"
        )
