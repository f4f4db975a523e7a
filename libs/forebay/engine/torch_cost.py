"""What the steps of a torch engine cost, from its weights."""

from dataclasses import fields

import torch
from torch import Tensor

from forebay.engine.model_cost import Matrix, model_cost
from forebay.engine.step_cost import ModelCost
from forebay.engine.weights import DecoderWeights
from forebay.kernels.peaks import Arithmetic
from forebay.kv.layout import KvLayout
from forebay.models.config import DecoderConfig


def torch_model_cost(weights: DecoderWeights, config: DecoderConfig, layout: KvLayout) -> ModelCost:
    """As the weights lie in memory."""
    named = (getattr(layer, field.name) for layer in weights.layers for field in fields(layer))
    tensors: list[Tensor] = [one for one in named if one is not None]
    return model_cost(
        config,
        layout,
        [_matrix(one) for one in tensors if one.dim() == 2],
        _matrix(weights.head),
        vector_bytes=sum(one.nbytes for one in tensors if one.dim() == 1),
    )


def _matrix(tensor: Tensor) -> Matrix:
    kind = Arithmetic.BF16 if tensor.dtype is torch.bfloat16 else Arithmetic.F32
    return Matrix(tensor.numel(), tensor.nbytes, kind)
