"""Reads GGUF files, versions 2 and 3, little-endian: metadata and where each tensor lies.

Knows the container only: not what the metadata means, nor how packed numbers are decoded (`gguf_dequantize`).
Every count, length and offset is checked against the file's size before it is used: a file that is not what it says
ends in a StartError, never in a crash or a huge allocation.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forebay.errors import StartError
from forebay.models.gguf_metadata import GgufMetadata, MetadataValue
from forebay.models.gguf_types import GgufTensorType
from forebay.models.refusals import damaged, unsupported

_MAGIC = b"GGUF"
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_MAX_KEYS, _MAX_TENSORS, _MAX_DIMENSIONS = 65_536, 1_048_576, 4
_DEFAULT_ALIGNMENT_BYTES = 32


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies. The shape is row-major, outermost first: the reverse of the order on disk."""

    name: str
    type: GgufTensorType
    shape: tuple[int, ...]
    offset_bytes: int  # from the start of the file
    size_bytes: int


class GgufFile:
    """One mapped file. The mapping lives as long as this object or any view of it."""

    def __init__(self, path: Path) -> None:
        """Maps the file and reads its header; no tensor is touched.

        Raises:
            StartError: the file cannot be read, is damaged, or is of an unsupported kind.
        """
        self.path = path
        self._data = _map(path)
        cursor = _Cursor(path, self._data)
        tensor_count, key_count = _read_header(cursor)
        self.metadata = GgufMetadata(path, _read_metadata(cursor, key_count))
        if (self.metadata.get("split.count", int) or 1) > 1:
            raise unsupported(
                path, "a model split over several files", ["one GGUF file (merge it with llama-gguf-split)"]
            )
        self.tensors = _read_tensor_table(cursor, tensor_count, self.metadata)

    def read_packed(self, name: str) -> NDArray[np.uint8]:
        """Bytes of one tensor as they are in the file: uint8 [size_bytes], read-only, not copied."""
        tensor = self.tensors[name]
        return np.frombuffer(self._data, np.uint8, tensor.size_bytes, tensor.offset_bytes)


class _Cursor:
    """Reads forward through the mapped bytes; running off the end is a StartError."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.offset_bytes = 0
        self.size_bytes = len(data)
        self._data = data

    def numbers(self, count: int, code: str) -> tuple[int | float | bool, ...]:
        """`count` numbers of one struct format such as "<I"."""
        end = self.offset_bytes + count * struct.calcsize(code)
        if end > self.size_bytes:
            raise self.truncated()
        numbers = struct.unpack_from(f"<{count}{code[1]}", self._data, self.offset_bytes)
        self.offset_bytes = end
        return numbers

    def integer(self, code: str) -> int:
        """One integer."""
        return int(self.numbers(1, code)[0])

    def text(self) -> str:
        """One length-prefixed UTF-8 string."""
        return self.texts(1)[0]

    def texts(self, count: int) -> list[str]:
        """`count` strings one after the other. One plain loop: a vocabulary is 100,000 of them."""
        if self.offset_bytes + count * _LENGTH.size > self.size_bytes:
            raise self.truncated()
        data, unpack_from, offset, texts = self._data, _LENGTH.unpack_from, self.offset_bytes, []
        try:
            for _ in range(count):
                start = offset + 8
                offset = start + unpack_from(data, offset)[0]
                if offset > self.size_bytes:
                    raise self.truncated()
                texts.append(data[start:offset].decode())
        except struct.error:
            raise self.truncated() from None
        except UnicodeDecodeError:
            raise damaged(self.path, "a string is not UTF-8") from None
        self.offset_bytes = offset
        return texts

    def truncated(self) -> StartError:
        """What to raise when a length runs past the end."""
        return damaged(self.path, f"truncated: it ends at byte {self.size_bytes} in the middle of the header")


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if magic != _MAGIC:
                raise damaged(path, "not a GGUF file (its first four bytes are not GGUF)")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StartError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None


def _read_header(cursor: _Cursor) -> tuple[int, int]:
    """Number of tensors and of metadata keys."""
    cursor.offset_bytes = len(_MAGIC)
    version = cursor.integer("<I")
    if version not in (2, 3):
        kind = "big-endian GGUF" if version & 0xFFFF == 0 else f"GGUF version {version}"
        raise unsupported(cursor.path, kind, ["little-endian GGUF versions 2 and 3"])
    tensor_count, key_count = cursor.integer("<Q"), cursor.integer("<Q")
    if tensor_count > _MAX_TENSORS or key_count > _MAX_KEYS:
        raise damaged(cursor.path, f"absurd header: {tensor_count} tensors and {key_count} metadata keys")
    return tensor_count, key_count


def _read_metadata(cursor: _Cursor, key_count: int) -> dict[str, MetadataValue]:
    values: dict[str, MetadataValue] = {}
    for _ in range(key_count):
        key = cursor.text()
        if key in values:
            raise damaged(cursor.path, f"metadata key {key} appears twice")
        values[key] = _read_value(cursor, key)
    return values


def _read_value(cursor: _Cursor, key: str) -> MetadataValue:
    kind = cursor.integer("<I")
    if kind == _STRING:
        return cursor.text()
    if kind in _SCALARS:
        return cursor.numbers(1, _SCALARS[kind])[0]
    if kind != _ARRAY:
        raise damaged(cursor.path, f"metadata key {key} has the unknown type {kind}")
    element_kind, count = cursor.integer("<I"), cursor.integer("<Q")
    if element_kind == _STRING:
        return cursor.texts(count)
    if element_kind not in _SCALARS:
        raise damaged(cursor.path, f"metadata key {key} is an array of the unknown type {element_kind}")
    return list(cursor.numbers(count, _SCALARS[element_kind]))


def _read_tensor_table(cursor: _Cursor, tensor_count: int, metadata: GgufMetadata) -> dict[str, GgufTensor]:
    alignment_bytes = metadata.get("general.alignment", int) or _DEFAULT_ALIGNMENT_BYTES
    entries = [_read_tensor_entry(cursor) for _ in range(tensor_count)]
    data_start = -(-cursor.offset_bytes // alignment_bytes) * alignment_bytes
    tensors: dict[str, GgufTensor] = {}
    for name, kind, shape, offset_bytes in entries:
        size_bytes = prod(shape) // kind.block_elements * kind.block_bytes
        tensor = GgufTensor(name, kind, shape, data_start + offset_bytes, size_bytes)
        if name in tensors:
            raise damaged(cursor.path, f"tensor {name} appears twice")
        if offset_bytes % alignment_bytes:
            raise damaged(cursor.path, f"tensor {name} is not aligned to {alignment_bytes} bytes")
        if tensor.offset_bytes + size_bytes > cursor.size_bytes:
            raise damaged(cursor.path, f"truncated: tensor {name} lies beyond the end of the file")
        tensors[name] = tensor
    return tensors


def _read_tensor_entry(cursor: _Cursor) -> tuple[str, GgufTensorType, tuple[int, ...], int]:
    """Name, type, row-major shape, and offset from the start of the tensor data."""
    name = cursor.text()
    dimension_count = cursor.integer("<I")
    if not 1 <= dimension_count <= _MAX_DIMENSIONS:
        raise damaged(cursor.path, f"tensor {name} has {dimension_count} dimensions")
    shape = tuple(int(size) for size in reversed(cursor.numbers(dimension_count, "<Q")))
    number, offset_bytes = cursor.integer("<I"), cursor.integer("<Q")
    if number not in GgufTensorType.__members__.values():
        names = [kind.name for kind in GgufTensorType]
        raise unsupported(cursor.path, f"tensor {name} of ggml type {number}", names)
    kind = GgufTensorType(number)
    if shape[-1] % kind.block_elements:
        raise damaged(cursor.path, f"tensor {name} has rows of {shape[-1]} numbers, not whole {kind.name} blocks")
    return name, kind, shape, offset_bytes
