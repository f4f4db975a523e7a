"""The file that holds a model's packed weights: written once, then mapped read-only and shared by all processes.

    magic "FBPACKED" | version u32 | header bytes u32 | header JSON | tensors, each on a 64-byte boundary

Knows names, places and sizes; not what a tensor is for.
"""

import contextlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.host.whole_file import writing_whole

ALIGNMENT_BYTES = 64
_MAGIC = b"FBPACKED"
_PREFIX = struct.Struct("<8sII")
_MAX_HEADER_BYTES = 1 << 26


class PackedFileError(ValueError):
    """The file is not whole, or not of this version. It can be made again."""


@dataclass(frozen=True, slots=True)
class PackedSpec:
    """One tensor before it is written. A matrix has its tile format and shape; a vector neither."""

    name: str
    size_bytes: int
    tile_format: int | None = None
    output_count: int = 0
    input_count: int = 0


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """Where one tensor lies in the mapping."""

    spec: PackedSpec
    offset_bytes: int


class PackedFile:
    """One mapped file. The mapping lives as long as this object."""

    def __init__(self, pages: mmap.mmap, properties: dict[str, str], tensors: Mapping[str, PackedTensor]) -> None:
        self.properties = properties
        self.tensors = tensors
        self.size_bytes = len(pages)
        self._bytes: NDArray[np.uint8] = np.frombuffer(pages, np.uint8)

    def read(self, name: str) -> NDArray[np.uint8]:
        """Bytes of one tensor, read-only, not copied."""
        tensor = self.tensors[name]
        return self._bytes[tensor.offset_bytes : tensor.offset_bytes + tensor.spec.size_bytes]

    def address(self, name: str) -> int:
        """Address of one tensor in this process; valid while this object lives."""
        return int(self._bytes.ctypes.data) + self.tensors[name].offset_bytes


def write_packed_file(
    path: Path,
    version: int,
    properties: Mapping[str, str],
    specs: Sequence[PackedSpec],
    make: Callable[[PackedSpec], NDArray[np.uint8]],
) -> None:
    """Writes the file whole or not at all, asking for one tensor after the other.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with writing_whole(path) as file:
        file.write(_header(version, properties, specs))
        for spec in specs:
            content = make(spec).reshape(-1)
            assert content.nbytes == spec.size_bytes, spec
            file.write(content.data)
            file.write(bytes(-spec.size_bytes % ALIGNMENT_BYTES))
    _forget_cached_pages(path)


def map_packed_file(path: Path, version: int) -> PackedFile:
    """Maps the file; no tensor is read.

    Raises:
        FileNotFoundError: there is none.
        PackedFileError: it is cut short, of another version, or not a file of ours.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes < _PREFIX.size:
            raise PackedFileError("it is cut short")
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    _ask_for_huge_pages(pages)
    magic, found_version, header_bytes = _PREFIX.unpack_from(pages)
    if magic != _MAGIC:
        raise PackedFileError("it is not a file of packed weights")
    if found_version != version:
        raise PackedFileError(f"it is of version {found_version}, not {version}")
    if header_bytes > min(_MAX_HEADER_BYTES, size_bytes - _PREFIX.size):
        raise PackedFileError("it is cut short")
    try:
        header = json.loads(pages[_PREFIX.size : _PREFIX.size + header_bytes])
        tensors = {entry["name"]: PackedTensor(PackedSpec(**entry), 0) for entry in header["tensors"]}
        properties = dict(header["properties"])
    except (ValueError, KeyError, TypeError) as error:
        raise PackedFileError("its header makes no sense") from error
    placed, end = _placed([tensor.spec for tensor in tensors.values()], _PREFIX.size + header_bytes)
    if end != size_bytes:
        raise PackedFileError(f"it has {size_bytes} bytes instead of {end}")
    return PackedFile(pages, properties, placed)


def _forget_cached_pages(path: Path) -> None:
    """The kernel cached small pages as they were written; whoever maps the file next can then get huge ones."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _ask_for_huge_pages(pages: mmap.mmap) -> None:
    """A third more of the memory's bandwidth, where the kernel and the file system have them; else no harm."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            pages.madvise(mmap.MADV_HUGEPAGE)


def _header(version: int, properties: Mapping[str, str], specs: Sequence[PackedSpec]) -> bytes:
    entries: list[dict[str, Any]] = [
        {
            "name": spec.name,
            "size_bytes": spec.size_bytes,
            "tile_format": spec.tile_format,
            "output_count": spec.output_count,
            "input_count": spec.input_count,
        }
        for spec in specs
    ]
    text = json.dumps({"properties": dict(properties), "tensors": entries}, separators=(",", ":")).encode()
    text += b" " * (-(_PREFIX.size + len(text)) % ALIGNMENT_BYTES)
    return _PREFIX.pack(_MAGIC, version, len(text)) + text


def _placed(specs: Sequence[PackedSpec], start_bytes: int) -> tuple[dict[str, PackedTensor], int]:
    """Where each tensor lies, and where the file ends."""
    tensors, offset = {}, start_bytes
    for spec in specs:
        tensors[spec.name] = PackedTensor(spec, offset)
        offset += spec.size_bytes + -spec.size_bytes % ALIGNMENT_BYTES
    return tensors, offset
