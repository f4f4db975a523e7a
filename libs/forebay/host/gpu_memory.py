"""Memory on a GPU that another process allocated, opened by its handle."""

import weakref

from forebay.host.gpu_runtime import GpuRuntime, gpu_device


class OpenedGpuMemory:
    """`address` in this process, until nobody refers to this object. Tensor libraries take it by its array interface,
    without a copy, and keep the object as long as their tensors live.
    """

    def __init__(self, device: str, handle: bytes, size_bytes: int) -> None:
        """Opens it. Raises GpuError: the device or its runtime is not here, or the handle is of no living memory."""
        self.device = device
        self.size_bytes = size_bytes
        runtime = GpuRuntime(gpu_device(device))
        self.address = runtime.open_shared(handle)
        self._closing = weakref.finalize(self, runtime.close_shared, self.address)
        self._closing.atexit = False  # the runtime may be gone before; it closes all itself

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {"shape": (self.size_bytes,), "typestr": "|u1", "data": (self.address, False), "version": 3}

    def close(self) -> None:
        """At once; nothing may use the memory afterwards. Idempotent."""
        self._closing()
