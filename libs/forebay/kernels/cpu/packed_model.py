"""A model's weights in the native kernels' layout, packed once per model into the cache and then mapped.

Knows which tensors are matrices and in which format each is kept. Does not know the files' bytes (`packed_file`) or the
tiles (`tiles`).
"""

import fcntl
import logging
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from forebay.errors import StartError
from forebay.kernels.cpu.packed_file import PackedFile, PackedFileError, PackedSpec, map_packed_file, write_packed_file
from forebay.kernels.cpu.tiles import (
    GROUP_INPUTS,
    OF_BLOCKS,
    TILE_OUTPUTS,
    TileFormat,
    pack_blocks,
    pack_dense,
    scales_of,
    tile_bytes,
)
from forebay.models.decoder_tensors import gguf_name, tensor_shapes
from forebay.models.gguf import GgufFile
from forebay.models.gguf_types import GgufTensorType
from forebay.models.model_file import GgufModel, ModelFile

PACKING_VERSION = 1
"""Goes up whenever files packed before must not be used any more."""

Progress = Callable[[str], None]
"""Told one line before each slow thing."""

_INTERLEAVED = (
    ".q_proj.weight",
    ".k_proj.weight",
)  # rows that llama.cpp's converter permutes in its llama architecture

Numbers = TypeVar("Numbers", NDArray[np.float32], NDArray[np.float16])

_log = logging.getLogger(__name__)


class WeightPolicy(Enum):
    """In which format matrices are kept.

    Blocks of Q4_0, Q4_1 and Q8_0 stay as they are, but with FLOAT32; of other types (F32, F16, BF16, k-quants) become:
    """

    BFLOAT16 = "bfloat16"
    INT8 = "int8"  # one scale per 32 numbers
    FLOAT32 = "float32"  # everything float32: for comparing, not for serving


class _Packer:
    """Reads tensors of one model and lays them out."""

    def __init__(self, model: ModelFile, policy: WeightPolicy) -> None:
        self._model = model
        self._policy = policy
        self._file = GgufFile(model.path) if isinstance(model, GgufModel) else None
        self._shapes = tensor_shapes(model.config)

    def specs(self) -> list[PackedSpec]:
        """All tensors, in the order in which a step reads them."""
        return [self._spec(name, shape) for name, shape in self._shapes.items()]

    def make(self, spec: PackedSpec) -> NDArray[np.uint8]:
        """The tensor's packed bytes.

        Raises:
            StartError: it holds NaN or infinite numbers.
        """
        if spec.tile_format is None:
            vector = self._finite(spec.name, self._model.read_tensor(spec.name))
            padded = np.zeros(spec.size_bytes // 4, np.float32)
            padded[: vector.size] = vector
            return padded.view(np.uint8)
        tile_format = TileFormat(spec.tile_format)
        if self._is_kept(spec.name):
            blocks = self._blocks(spec.name)
            self._finite(spec.name, scales_of(blocks, tile_format))
            return pack_blocks(blocks, tile_format)
        return pack_dense(self._finite(spec.name, self._model.read_tensor(spec.name)), tile_format)

    def _spec(self, name: str, shape: tuple[int, ...]) -> PackedSpec:
        if len(shape) == 1:
            return PackedSpec(name, 4 * (-(-shape[0] // GROUP_INPUTS) * GROUP_INPUTS))
        tile_format = self._format(name)
        tiles = -(-shape[0] // TILE_OUTPUTS)
        return PackedSpec(name, tiles * tile_bytes(tile_format, shape[1]), int(tile_format), shape[0], shape[1])

    def _stored_type(self, name: str) -> GgufTensorType:
        return self._file.tensors[gguf_name(name)].type if self._file else GgufTensorType.F32

    def _is_kept(self, name: str) -> bool:
        return self._policy is not WeightPolicy.FLOAT32 and self._stored_type(name) in OF_BLOCKS

    def _format(self, name: str) -> TileFormat:
        if self._is_kept(name):
            return OF_BLOCKS[self._stored_type(name)]
        if self._policy is WeightPolicy.FLOAT32:
            return TileFormat.F32
        is_quantized = self._stored_type(name) in (GgufTensorType.Q4_K, GgufTensorType.Q6_K)
        is_int8 = is_quantized or self._policy is WeightPolicy.INT8
        return TileFormat.Q8_0 if is_int8 else TileFormat.BF16

    def _blocks(self, name: str) -> NDArray[np.uint8]:
        """The tensor's blocks, uint8 [outputs, groups, block bytes], rows in Hugging Face order."""
        assert self._file is not None
        tensor = self._file.tensors[gguf_name(name)]
        outputs, inputs = tensor.shape
        groups = inputs // tensor.type.block_elements
        blocks = self._file.read_packed(tensor.name).reshape(outputs, groups, tensor.type.block_bytes)
        config = self._model.config
        if config.architecture == "llama" and name.endswith(_INTERLEAVED):
            halves = blocks.reshape(-1, config.head_dim // 2, 2, groups, tensor.type.block_bytes).swapaxes(1, 2)
            return halves.reshape(outputs, groups, -1)
        return blocks

    def _finite(self, name: str, numbers: Numbers) -> Numbers:
        if not np.isfinite(numbers).all():
            raise StartError(
                f"{self._model.path}: tensor {name} holds NaN or infinite weights; the file is damaged, fetch it again"
            )
        return numbers


def load_packed_model(
    model: ModelFile, policy: WeightPolicy, folder: Path, progress: Progress = lambda line: None
) -> PackedFile:
    """Maps the packed weights, packing them first if they are missing, cut short or of another version.

    Processes that want the same weights at once wait for the one that packs.

    Raises:
        StartError: a weight is NaN or infinite, or the folder cannot be written.
    """
    path = folder / f"{model.digest}-native-{policy.value}.packed"
    try:
        return _map_if_usable(path) or _pack_once(model, policy, path, progress)
    except OSError as error:
        raise StartError(
            f"cannot keep packed weights in {folder}: {error.strerror}; free space there or set FOREBAY_CACHE"
        ) from error


def _pack_once(model: ModelFile, policy: WeightPolicy, path: Path, progress: Progress) -> PackedFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if packed := _map_if_usable(path):
            return packed
        progress(f"packing the weights of {model.name} for the native kernels (a few seconds, once)")
        packer = _Packer(model, policy)
        write_packed_file(path, PACKING_VERSION, {"model_digest": model.digest}, packer.specs(), packer.make)
        return map_packed_file(path, PACKING_VERSION)


def _map_if_usable(path: Path) -> PackedFile | None:
    try:
        return map_packed_file(path, PACKING_VERSION)
    except FileNotFoundError:
        return None
    except PackedFileError as error:
        _log.warning("packed weights %s cannot be used: %s; packing them again", path.name, error)
        return None
