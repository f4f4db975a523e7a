"""Reads the safetensors files of a Hugging Face folder: one file, or shards with an index.

Knows the container only, and reads bfloat16 without torch. Every offset is checked against the file's size.
Format: https://github.com/huggingface/safetensors#format
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forebay.errors import StartError
from forebay.models.gguf_dequantize import bfloat16_to_float32
from forebay.models.json_file import read_json
from forebay.models.refusals import damaged, unsupported

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True, slots=True)
class SafeTensor:
    """Where one tensor lies. dtype is the format's own name for it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int  # from the start of the file


class SafetensorsFolder:
    """All tensors of a folder's weight files; nothing but headers is read until a tensor is asked for."""

    def __init__(self, folder: Path) -> None:
        """Reads the headers.

        Raises:
            StartError: there is no weight file, a shard is missing, or a file is damaged.
        """
        self.weight_paths = _weight_paths(folder)
        self.tensors: dict[str, SafeTensor] = {}
        for path in self.weight_paths:
            for name, tensor in _read_header(path).items():
                if name in self.tensors:
                    raise damaged(path, f"tensor {name} is also in {self.tensors[name].path.name}")
                self.tensors[name] = tensor

    def read_tensor(self, name: str) -> NDArray[np.float32]:
        """The tensor as float32, owned by the caller.

        Raises:
            StartError: the tensor's number format is not supported.
        """
        tensor = self.tensors[name]
        dtype = _DTYPES.get(tensor.dtype)
        if dtype is None:
            raise unsupported(tensor.path, f"tensor {name} of type {tensor.dtype}", _DTYPES)
        numbers = np.memmap(tensor.path, dtype, "r", tensor.offset_bytes, tensor.shape)
        return bfloat16_to_float32(np.asarray(numbers)) if tensor.dtype == "BF16" else numbers.astype(np.float32)


def _weight_paths(folder: Path) -> list[Path]:
    """The folder's weight files, in order of name."""
    if (folder / _INDEX).is_file():
        shards: dict[str, Any] = read_json(folder / _INDEX).require("weight_map", dict)
        paths = sorted({folder / str(name) for name in shards.values()})
    elif (folder / _SINGLE).is_file():
        paths = [folder / _SINGLE]
    else:
        raise StartError(f"{folder}: neither {_SINGLE} nor {_INDEX} is there; only safetensors weights can be served")
    for path in paths:
        if path.parent != folder or not path.is_file():
            raise damaged(folder, f"weight shard {path.name} is missing")
    return paths


def _read_header(path: Path) -> dict[str, SafeTensor]:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size_bytes < _LENGTH_BYTES or header_bytes > min(_MAX_HEADER_BYTES, size_bytes - _LENGTH_BYTES):
            raise damaged(path, "truncated, or not a safetensors file: its header does not fit")
        header = file.read(header_bytes)
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        data_start = _LENGTH_BYTES + header_bytes
        return {name: _read_entry(path, name, entry, data_start, size_bytes) for name, entry in entries.items()}
    except (ValueError, AttributeError, KeyError, TypeError):
        raise damaged(path, "its header is not what safetensors prescribes") from None


def _read_entry(path: Path, name: str, entry: dict[str, Any], data_start: int, size_bytes: int) -> SafeTensor:
    begin, end = entry["data_offsets"]
    shape = tuple(int(size) for size in entry["shape"])
    if not 0 <= begin <= end or data_start + end > size_bytes:
        raise damaged(path, f"truncated: tensor {name} lies beyond the end of the file")
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is not None and prod(shape) * dtype.itemsize != end - begin:
        raise damaged(path, f"tensor {name} has {end - begin} bytes, which is not its shape")
    return SafeTensor(path, entry["dtype"], shape, data_start + begin)
