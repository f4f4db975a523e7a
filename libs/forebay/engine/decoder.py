"""The generic decoder: Llama, SmolLM2, Qwen2, Qwen3 and Mistral by configuration.

Knows the order of operations of one step. Does not know which device computes them, how KV is stored, which sequences
the rows belong to, or how a token is chosen.
"""

from typing import Generic

import torch.nn.functional as F
from torch import Tensor

from forebay.engine.weights import DecoderWeights, LayerWeights
from forebay.kernels.port import Kernels, PlanT, RopeRows
from forebay.models.config import DecoderConfig


class Decoder(Generic[PlanT]):
    """A decoder over one set of weights and kernels.

    The residual stream is float32 [M, hidden]; everything inside a layer has the weights' dtype.
    """

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, kernels: Kernels[PlanT]) -> None:
        self._config = config
        self._weights = weights
        self._kernels = kernels

    def hidden(self, token_ids_M: Tensor, rope: RopeRows, plan: PlanT) -> Tensor:
        """Residual stream after the last layer, [M, hidden]; KV of all rows is written on the way."""
        residual = F.embedding(token_ids_M, self._weights.embedding).float()
        for index, layer in enumerate(self._weights.layers):
            residual += self._attention(residual, layer, rope, plan, index)
            residual += self._feed_forward(residual, layer)
        return residual

    def logits(self, hidden_SK: Tensor) -> Tensor:
        """float32 [S, vocabulary]. Give only the rows that sample."""
        normed = self._kernels.rms_norm(hidden_SK, self._weights.final_norm, self._config.rms_norm_eps)
        return self._kernels.logits(normed, self._weights.head)

    def _attention(self, residual: Tensor, layer: LayerWeights, rope: RopeRows, plan: PlanT, index: int) -> Tensor:
        kernels, config = self._kernels, self._config
        normed = kernels.rms_norm(residual, layer.input_norm, config.rms_norm_eps)
        qkv = kernels.linear(normed, layer.qkv, layer.qkv_bias).view(len(residual), -1, config.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            self._normalize_heads(qkv, layer.q_norm, layer.k_norm)
        q = kernels.rotate_and_write(qkv, rope, plan, index)
        return kernels.linear(kernels.attention(q, plan, index), layer.output)

    def _normalize_heads(self, qkv_MHD: Tensor, q_norm: Tensor, k_norm: Tensor) -> None:
        config = self._config
        queries = qkv_MHD[:, : config.query_heads]
        keys = qkv_MHD[:, config.query_heads : config.query_heads + config.kv_heads]
        queries.copy_(self._kernels.rms_norm(queries, q_norm, config.rms_norm_eps))
        keys.copy_(self._kernels.rms_norm(keys, k_norm, config.rms_norm_eps))

    def _feed_forward(self, residual: Tensor, layer: LayerWeights) -> Tensor:
        kernels = self._kernels
        normed = kernels.rms_norm(residual, layer.post_attention_norm, self._config.rms_norm_eps)
        return kernels.linear(kernels.swiglu(kernels.linear(normed, layer.gate_up)), layer.down)
