"""A model's weights in the form a chip class computes with, packed once per model and precision into the cache.

Knows which matrices are fused and which precision each tensor has. Does not know model formats (forebay.models) nor
what is computed.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from forebay import models
from forebay.chips import NumberFormat
from forebay.engine.weight_file import TensorSpec, WeightFile, WeightFileError, map_weight_file, write_weight_file
from forebay.errors import StartError
from forebay.host.file_lock import locked
from forebay.host.source_digest import source_digest
from forebay.models.config import DecoderConfig
from forebay.models.decoder_tensors import tensor_shapes
from forebay.models.model_file import ModelFile

_HERE = Path(__file__)
PACKING_VERSION = source_digest(_HERE, _HERE.with_name("weight_file.py"), Path(models.__file__).parent)[:16]
"""Another one whenever the sources that decide what is packed, and how, are others."""

Progress = Callable[[int, int], None]
"""Told (tensors packed, tensors in all)."""

_LAYER_PARTS = {
    "input_norm": ("input_layernorm.weight",),
    "qkv": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "qkv_bias": ("self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"),
    "q_norm": ("self_attn.q_norm.weight",),
    "k_norm": ("self_attn.k_norm.weight",),
    "output": ("self_attn.o_proj.weight",),
    "post_attention_norm": ("post_attention_layernorm.weight",),
    "gate_up": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "down": ("mlp.down_proj.weight",),
}
_TOP_PARTS = {
    "embedding": ("model.embed_tokens.weight",),
    "final_norm": ("model.norm.weight",),
    "head": ("lm_head.weight",),
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Matrices are [outputs, inputs] in the weight dtype, norms are float32."""

    input_norm: Tensor
    qkv: Tensor  # query, key and value rows
    output: Tensor
    post_attention_norm: Tensor
    gate_up: Tensor  # gate rows, then up rows
    down: Tensor
    qkv_bias: Tensor | None = None
    q_norm: Tensor | None = None  # [head_dim]
    k_norm: Tensor | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """All weights of a decoder. A tied head is the embedding itself, not a copy."""

    embedding: Tensor  # [vocabulary, hidden]
    layers: tuple[LayerWeights, ...]
    final_norm: Tensor
    head: Tensor  # [vocabulary, hidden]


def packed_path(model: ModelFile, weight_dtype: NumberFormat, folder: Path) -> Path:
    """Where the packed weights of that model lie."""
    return folder / f"{model.digest}-{weight_dtype.value}.safetensors"


def load_weights(
    model: ModelFile,
    weight_dtype: NumberFormat,
    folder: Path,
    progress: Progress = lambda done_count, total_count: None,
) -> DecoderWeights:
    """Maps the packed weights, packing them first if they are missing, cut short or of another version.

    Processes that want the same weights at once wait for the one that packs. The lock file beside the weights stays.

    Raises:
        StartError: a weight is NaN or infinite, or the folder cannot be written.
    """
    path = packed_path(model, weight_dtype, folder)
    try:
        packed = _map_if_usable(path) or _pack_once(model, weight_dtype, path, progress)
    except OSError as error:
        raise StartError(
            f"cannot keep packed weights in {folder}: {error.strerror}; free space there or set FOREBAY_CACHE"
        ) from error
    return _decoder_weights(packed, model.config)


def _pack_once(model: ModelFile, weight_dtype: NumberFormat, path: Path, progress: Progress) -> WeightFile:
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_suffix(".lock")):
        if packed := _map_if_usable(path):
            return packed
        _pack(model, weight_dtype, path, progress)
        return map_weight_file(path)


def _map_if_usable(path: Path) -> WeightFile | None:
    try:
        packed = map_weight_file(path)
    except FileNotFoundError:
        return None
    except WeightFileError as error:
        _log.warning("packed weights %s are damaged (%s); packing them again", path.name, error)
        return None
    if (version := packed.metadata.get("packing_version")) != PACKING_VERSION:
        _log.warning("packed weights %s have version %s, not %s; packing again", path.name, version, PACKING_VERSION)
        return None
    return packed


def _pack(model: ModelFile, weight_dtype: NumberFormat, path: Path, progress: Progress) -> None:
    parts = _parts(model.config)
    shapes = tensor_shapes(model.config)
    specs = [
        TensorSpec(name, _dtype(name, weight_dtype), _fused_shape([shapes[source] for source in sources]))
        for name, sources in parts.items()
    ]
    done_count = 0

    def make(spec: TensorSpec) -> Tensor:
        nonlocal done_count
        numbers = np.concatenate([_read_finite(model, source) for source in parts[spec.name]])
        done_count += 1
        progress(done_count, len(specs))
        return torch.from_numpy(numbers).to(spec.dtype)

    write_weight_file(path, {"packing_version": PACKING_VERSION, "model_digest": model.digest}, specs, make)


def _parts(config: DecoderConfig) -> dict[str, tuple[str, ...]]:
    """Packed name -> names in the model whose rows it is made of, for what this model has."""
    wanted: dict[str, tuple[str, ...]] = dict(_TOP_PARTS)
    for layer in range(config.layers):
        for name, sources in _LAYER_PARTS.items():
            wanted[f"layers.{layer}.{name}"] = tuple(f"model.layers.{layer}.{source}" for source in sources)
    there = tensor_shapes(config).keys()
    return {name: sources for name, sources in wanted.items() if there >= set(sources)}


def _dtype(name: str, weight_dtype: NumberFormat) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, weight_dtype.value)
    return torch.float32 if name.endswith("_norm") else dtype


def _fused_shape(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def _read_finite(model: ModelFile, name: str) -> np.ndarray:
    numbers = model.read_tensor(name)
    if not np.isfinite(numbers).all():
        raise StartError(f"{model.path}: tensor {name} holds NaN or infinite weights; the file is damaged")
    return numbers


def _decoder_weights(packed: WeightFile, config: DecoderConfig) -> DecoderWeights:
    tensors = packed.tensors
    layers = tuple(
        LayerWeights(**{name: tensors[key] for name in _LAYER_PARTS if (key := f"layers.{layer}.{name}") in tensors})
        for layer in range(config.layers)
    )
    embedding = tensors["embedding"]
    return DecoderWeights(embedding, layers, tensors["final_norm"], tensors.get("head", embedding))
