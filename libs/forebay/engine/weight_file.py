"""One safetensors file, written once and then mapped. Knows the format; not what the tensors are for.

Written here rather than by the safetensors package so that no more than one tensor is in memory at a time and tensors
begin on cache lines; any safetensors reader can read the result.
"""

import json
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from forebay.host.whole_file import writing_whole

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_ALIGNMENT_BYTES = 64
_MAX_HEADER_BYTES = 100_000_000  # as in the safetensors specification


class WeightFileError(ValueError):
    """The file is not whole."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name and shape of one tensor in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor in the file."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A mapped file. The tensors are views of its pages, which all processes that map it share; never write to them."""

    metadata: dict[str, str]
    tensors: dict[str, Tensor]


def write_weight_file(
    path: Path, metadata: dict[str, str], specs: Sequence[TensorSpec], make: Callable[[TensorSpec], Tensor]
) -> None:
    """Writes the file whole or not at all, asking for one tensor after the other.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with writing_whole(path) as file:
        file.write(_header(metadata, specs))
        for spec in specs:
            tensor = make(spec).contiguous()
            assert tensor.dtype == spec.dtype, spec
            assert tensor.shape == spec.shape, spec
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)


def _header(metadata: dict[str, str], specs: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for spec in specs:
        end = offset + spec.size_bytes
        entries[spec.name] = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT_BYTES)
    return struct.pack("<Q", len(text)) + text


def map_weight_file(path: Path) -> WeightFile:
    """Maps the file; no tensor is read.

    Raises:
        FileNotFoundError: there is none.
        WeightFileError: it is cut short or not a file of ours.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes < 8:
            raise WeightFileError("no header")
        # Copy-on-write instead of read-only only because torch warns of buffers it could not write to.
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    (header_bytes,) = struct.unpack("<Q", pages[:8])
    if header_bytes > min(_MAX_HEADER_BYTES, size_bytes - 8):
        raise WeightFileError("cut short in its header")
    try:
        entries = json.loads(pages[8 : 8 + header_bytes])
        metadata = entries.pop("__metadata__")
        end = 8 + header_bytes + max(entry["data_offsets"][1] for entry in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightFileError("its header makes no sense") from error
    if size_bytes != end:
        raise WeightFileError(f"it has {size_bytes} bytes instead of {end}")
    body = torch.frombuffer(pages, dtype=torch.uint8)[8 + header_bytes :]
    return WeightFile(metadata, {name: _view(body, **entry) for name, entry in entries.items()})


def _view(body: Tensor, dtype: str, shape: list[int], data_offsets: list[int]) -> Tensor:
    start, end = data_offsets
    return body[start:end].view(_DTYPES[dtype]).view(shape)
