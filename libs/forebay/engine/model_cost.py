"""From a model's matrices, as an engine keeps them, to what its steps cost. Pure."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from forebay.engine.step_cost import ModelCost, Operations
from forebay.kernels.peaks import Arithmetic
from forebay.kv.layout import KvDtype, KvLayout
from forebay.models.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix as it lies in memory, padding included.

    product_count: products of the machine for one of the model.
    """

    parameter_count: int
    size_bytes: int
    arithmetic: Arithmetic
    product_count: int = 1


def model_cost(
    config: DecoderConfig, layout: KvLayout, layer_matrices: Iterable[Matrix], head: Matrix, vector_bytes: int
) -> ModelCost:
    """Args: layer_matrices: of all layers; vector_bytes: of norms and biases."""
    matrices = list(layer_matrices)
    # A score and a weighted value: two products and two additions for each number of a query.
    attention = 4 * config.query_heads * config.head_dim * config.layers
    kind = Arithmetic.BF16 if layout.dtype is KvDtype.BFLOAT16 else Arithmetic.F32
    return ModelCost(
        row_operations=_operations(matrices),
        head_operations=_operations([head]),
        attention_operations=Operations(attention, {kind: attention}),
        layer_bytes=sum(matrix.size_bytes for matrix in matrices) + vector_bytes,
        head_bytes=head.size_bytes,
        kv_token_bytes=layout.block_bytes // layout.block_tokens,
    )


def _operations(matrices: Iterable[Matrix]) -> Operations:
    """A product and an addition for each parameter."""
    model, machine = 0, Counter[Arithmetic]()
    for matrix in matrices:
        model += 2 * matrix.parameter_count
        machine[matrix.arithmetic] += 2 * matrix.product_count * matrix.parameter_count
    return Operations(model, machine)
