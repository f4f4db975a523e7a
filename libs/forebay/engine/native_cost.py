"""What the steps of a native engine cost, from its packed weights."""

from forebay.engine.model_cost import Matrix, model_cost
from forebay.engine.step_cost import ModelCost
from forebay.kernels.cpu.packed_file import PackedFile, PackedSpec
from forebay.kernels.cpu.tiles import TileFormat
from forebay.kernels.peaks import Arithmetic
from forebay.kv.layout import KvLayout
from forebay.models.config import DecoderConfig

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_DENSE = {TileFormat.F32: Arithmetic.F32, TileFormat.BF16: Arithmetic.BF16}
_HEAD_BITS = 16


def native_model_cost(
    packed: PackedFile, config: DecoderConfig, layout: KvLayout, activation_bits: int = 16
) -> ModelCost:
    """Args: activation_bits: see NativePrecision; the head always has 16."""
    specs = {name: tensor.spec for name, tensor in packed.tensors.items()}
    head = specs.pop(_HEAD, specs[_EMBEDDING])
    del specs[_EMBEDDING]  # a step reads a few rows of it, unless it is the head
    return model_cost(
        config,
        layout,
        [_matrix(spec, activation_bits) for spec in specs.values() if spec.tile_format is not None],
        _matrix(head, _HEAD_BITS),
        vector_bytes=sum(spec.size_bytes for spec in specs.values() if spec.tile_format is None),
    )


def _matrix(spec: PackedSpec, activation_bits: int) -> Matrix:
    assert spec.tile_format is not None
    dense = _DENSE.get(TileFormat(spec.tile_format))
    parameter_count = spec.output_count * spec.input_count
    if dense is not None:
        return Matrix(parameter_count, spec.size_bytes, dense)
    return Matrix(parameter_count, spec.size_bytes, Arithmetic.INT8, activation_bits // 8)
