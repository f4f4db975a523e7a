"""Memory on a GPU that another process allocated, opened by its handle."""

from forebay.host.gpu_runtime import GpuRuntime, gpu_device


class OpenedGpuMemory:
    """`address` in this process. Tensor libraries take it by its array interface, without a copy."""

    def __init__(self, device: str, handle: bytes, size_bytes: int) -> None:
        """Opens it. Raises GpuError: the device or its runtime is not here, or the handle is of no living memory."""
        self.device = device
        self.size_bytes = size_bytes
        self._runtime = GpuRuntime(gpu_device(device))
        self.address = self._runtime.open_shared(handle)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        return {"shape": (self.size_bytes,), "typestr": "|u1", "data": (self.address, False), "version": 3}

    def close(self) -> None:
        """Nothing may use the memory afterwards."""
        self._runtime.close_shared(self.address)
