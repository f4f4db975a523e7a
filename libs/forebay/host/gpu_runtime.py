"""The few functions of CUDA's and HIP's runtimes that KV memory on a GPU needs, by ctypes: no tensor library.

Both runtimes have the same functions under their own prefix. Nothing is loaded before a device is asked for by name.
"""

import ctypes
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

LIBRARY_VARIABLE: Final = "FOREBAY_GPU_RUNTIME"
"""Path of the runtime's library, where it is not found by its name."""
IPC_HANDLE_BYTES: Final = 64

_LIBRARIES: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "cuda": ("libcudart.so.13", "libcudart.so.12", "libcudart.so"),
        "hip": ("libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so"),
    }
)
_COPY_BY_ADDRESS: Final = 4  # cudaMemcpyDefault: the runtime knows which side lies where
_LAZY_PEER_ACCESS: Final = 1

_pointer, _size, _int = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int


class _IpcHandle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_char * IPC_HANDLE_BYTES)]


_ARGUMENTS: Final[Mapping[str, tuple[type, ...]]] = MappingProxyType(
    {
        "GetDeviceCount": (ctypes.POINTER(_int),),
        "SetDevice": (_int,),
        "Malloc": (ctypes.POINTER(_pointer), _size),
        "Free": (_pointer,),
        "IpcGetMemHandle": (ctypes.POINTER(_IpcHandle), _pointer),
        "IpcOpenMemHandle": (ctypes.POINTER(_pointer), _IpcHandle, ctypes.c_uint),
        "IpcCloseMemHandle": (_pointer,),
        "HostRegister": (_pointer, _size, ctypes.c_uint),
        "HostUnregister": (_pointer,),
        "StreamCreate": (ctypes.POINTER(_pointer),),
        "StreamDestroy": (_pointer,),
        "StreamSynchronize": (_pointer,),
        "MemcpyAsync": (_pointer, _pointer, _size, _int, _pointer),
    }
)


class GpuError(Exception):
    """A device or its runtime cannot be had, or a call failed; the text says which and why."""


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """One GPU of this machine: "cuda:0", "hip:1"."""

    family: str
    number: int

    def __str__(self) -> str:
        return f"{self.family}:{self.number}"


def gpu_device(name: str) -> GpuDevice:
    """The device of that name. Raises GpuError."""
    match = re.fullmatch(r"(cuda|hip):(\d{1,3})", name)
    if match is None:
        raise GpuError(f"{name!r} names no GPU; write cuda:N or hip:N")
    return GpuDevice(match[1], int(match[2]))


class GpuRuntime:
    """The runtime of a device's family; its calls are for that device. To be used by one thread."""

    def __init__(self, device: GpuDevice) -> None:
        """Loads the library. Raises GpuError: there is none, or it has no such device."""
        self.device = device
        self._library = _load(device.family)
        self._functions = {name: self._function(name, arguments) for name, arguments in _ARGUMENTS.items()}
        self._text = getattr(self._library, f"{device.family}GetErrorString")
        self._text.argtypes, self._text.restype = (_int,), ctypes.c_char_p
        count = _int()
        self._call("GetDeviceCount", ctypes.byref(count))
        if device.number >= count.value:
            raise GpuError(f"there is no {device}: this machine has {count.value} {device.family} devices")
        self._call("SetDevice", device.number)

    def allocate(self, size_bytes: int) -> int:
        """Device memory; its address."""
        address = _pointer()
        self._call("Malloc", ctypes.byref(address), size_bytes)
        return address.value or 0

    def free(self, address: int) -> None:
        """Gives allocated memory back. Other processes that have it open keep theirs until they close it."""
        self._call("Free", address)

    def share(self, address: int) -> bytes:
        """A handle with which other processes of this machine open allocated memory."""
        handle = _IpcHandle()
        self._call("IpcGetMemHandle", ctypes.byref(handle), address)
        return ctypes.string_at(ctypes.byref(handle), IPC_HANDLE_BYTES)

    def open_shared(self, handle: bytes) -> int:
        """The memory of a handle of another process; its address in this one."""
        if len(handle) != IPC_HANDLE_BYTES:
            raise GpuError(f"a handle of GPU memory has {IPC_HANDLE_BYTES} bytes, not {len(handle)}")
        address = _pointer()
        opened = _IpcHandle.from_buffer_copy(handle)
        self._call("IpcOpenMemHandle", ctypes.byref(address), opened, _LAZY_PEER_ACCESS)
        return address.value or 0

    def close_shared(self, address: int) -> None:
        """Ends `open_shared`."""
        self._call("IpcCloseMemHandle", address)

    def pin(self, address: int, size_bytes: int) -> None:
        """Keeps host memory where it is, so that copies need no stop on the way."""
        self._call("HostRegister", address, size_bytes, 0)

    def unpin(self, address: int) -> None:
        """Ends `pin`."""
        self._call("HostUnregister", address)

    def new_stream(self) -> int:
        """A queue of copies, carried out in order."""
        stream = _pointer()
        self._call("StreamCreate", ctypes.byref(stream))
        return stream.value or 0

    def end_stream(self, stream: int) -> None:
        """Ends `new_stream`."""
        self._call("StreamDestroy", stream)

    def copy(self, to_address: int, from_address: int, size_bytes: int, stream: int) -> None:
        """Begins a copy, host or device on either side."""
        self._call("MemcpyAsync", to_address, from_address, size_bytes, _COPY_BY_ADDRESS, stream)

    def wait(self, stream: int) -> None:
        """Returns when every copy of the stream is done."""
        self._call("StreamSynchronize", stream)

    def _function(self, name: str, arguments: tuple[type, ...]) -> "ctypes._NamedFuncPointer":
        symbol = f"{self.device.family}{name}"
        try:
            function: ctypes._NamedFuncPointer = getattr(self._library, symbol)
        except AttributeError:
            raise GpuError(
                f"{self._library._name} has no function {symbol}; is it the {self.device.family} runtime?"
            ) from None
        function.argtypes, function.restype = arguments, _int
        return function

    def _call(self, name: str, *arguments: object) -> None:
        code = self._functions[name](*arguments)
        if code:
            text = self._text(code)
            why = text.decode(errors="replace") if text else "no text"
            raise GpuError(f"{self.device.family}{name} on {self.device} failed with {code}: {why}")


def _load(family: str) -> ctypes.CDLL:
    named = os.environ.get(LIBRARY_VARIABLE)
    errors = []
    for name in (named,) if named else _LIBRARIES[family]:
        try:
            return ctypes.CDLL(name)
        except OSError as error:
            errors.append(str(error))
    raise GpuError(
        f"the {family} runtime cannot be loaded ({errors[0]}); install it, or set {LIBRARY_VARIABLE} to its path"
    )
