"""A model's weights in the native kernels' layout, packed once per model into the cache and then mapped.

Knows which tensors are matrices and in which format each is kept. Does not know the files' bytes (`packed_file`) or the
tiles (`tiles`).
"""

import logging
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from forebay import models
from forebay.errors import StartError
from forebay.host.file_lock import locked
from forebay.host.source_digest import source_digest
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
from forebay.models.decoder_tensors import tensor_shapes
from forebay.models.gguf_types import GgufTensorType
from forebay.models.model_file import GgufModel, ModelFile

_HERE = Path(__file__)
_SOURCES = (_HERE, _HERE.with_name("tiles.py"), _HERE.with_name("packed_file.py"), Path(models.__file__).parent)
PACKING_VERSION = int(source_digest(*_SOURCES)[:8], 16)
"""Another one whenever the sources that decide what is packed, and how, are others."""

Progress = Callable[[str], None]
"""Told one line before each slow thing."""

Numbers = TypeVar("Numbers", NDArray[np.float32], NDArray[np.float16])

_log = logging.getLogger(__name__)


class WeightPolicy(Enum):
    """In which format matrices are kept; the value is that of the chip classes' `NumberFormat`.

    BFLOAT16 and INT8 keep blocks of Q4_0, Q4_1 and Q8_0 bit for bit. Both round k-quants (Q4_K, Q6_K), for which there
    are no kernels, to INT8's blocks: 8 bits, one scale per 32 numbers. They differ in what becomes of the numbers that
    the file holds one by one (F32, F16, BF16).
    """

    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    FLOAT32 = "float32"  # everything, blocks too: for comparing, not for serving


class _Packer:
    """Reads tensors of one model and lays them out."""

    def __init__(self, model: ModelFile, policy: WeightPolicy) -> None:
        self._model = model
        self._policy = policy
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
            blocks = self._blocks(spec)
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
        return self._model.stored_type(name) if isinstance(self._model, GgufModel) else GgufTensorType.F32

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

    def _blocks(self, spec: PackedSpec) -> NDArray[np.uint8]:
        """The matrix's blocks as they are in the file, uint8 [outputs, groups, block bytes]."""
        assert isinstance(self._model, GgufModel)
        block_bytes = self._model.stored_type(spec.name).block_bytes
        return self._model.read_rows(spec.name).reshape(spec.output_count, -1, block_bytes)

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
    with locked(path.with_suffix(".lock")):
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
