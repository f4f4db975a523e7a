"""The generic decoder: Llama, SmolLM2, Qwen2, Qwen3 and Mistral by configuration.

Knows the order of operations of one step, and that ranks of tensor parallelism compute parts of each layer. Does not
know which device computes them, how KV is stored, which sequences the rows belong to, or how a token is chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

import torch.nn.functional as F
from torch import Tensor

from forebay.engine.weights import DecoderWeights, LayerWeights
from forebay.kernels.port import HeadShape, Kernels, PlanT, RopeRows
from forebay.models.config import DecoderConfig


@dataclass(frozen=True, slots=True)
class Rank(Generic[PlanT]):
    """One of those among whom each layer's heads and feed-forward are cut; of one, it has them all."""

    layers: tuple[LayerWeights, ...]  # its part of each
    heads: HeadShape
    kernels: Kernels[PlanT]  # over its part of the KV


class Decoder(Generic[PlanT]):
    """A decoder over one set of weights.

    The residual stream is float32 [M, hidden]; everything inside a layer has the weights' dtype. What the ranks
    compute is added to it in their order, so that the sum is the same bits whoever of them is done first.
    """

    def __init__(self, config: DecoderConfig, weights: DecoderWeights, ranks: Sequence[Rank[PlanT]]) -> None:
        self._config = config
        self._weights = weights
        self._ranks = ranks
        self._kernels = ranks[0].kernels  # of what no rank has a part of

    def hidden(self, token_ids_M: Tensor, rope: RopeRows, plans: Sequence[PlanT]) -> Tensor:
        """Residual stream after the last layer, [M, hidden]; KV of all rows is written on the way. plans: by rank."""
        residual = F.embedding(token_ids_M, self._weights.embedding).float()
        eps = self._config.rms_norm_eps
        for index, layer in enumerate(self._weights.layers):
            normed = self._kernels.rms_norm(residual, layer.input_norm, eps)
            for rank, plan in zip(self._ranks, plans, strict=True):
                residual += self._attention(rank, normed, rope, plan, index)
            normed = self._kernels.rms_norm(residual, layer.post_attention_norm, eps)
            for rank in self._ranks:
                residual += _feed_forward(rank, normed, index)
        return residual

    def logits(self, hidden_SK: Tensor) -> Tensor:
        """float32 [S, vocabulary]. Give only the rows that sample."""
        normed = self._kernels.rms_norm(hidden_SK, self._weights.final_norm, self._config.rms_norm_eps)
        return self._kernels.logits(normed, self._weights.head)

    def _attention(self, rank: Rank[PlanT], normed: Tensor, rope: RopeRows, plan: PlanT, index: int) -> Tensor:
        kernels, layer = rank.kernels, rank.layers[index]
        qkv = kernels.linear(normed, layer.qkv, layer.qkv_bias).view(len(normed), -1, rank.heads.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            self._normalize_heads(qkv, rank.heads, layer.q_norm, layer.k_norm)
        q = kernels.rotate_and_write(qkv, rope, plan, index)
        return kernels.linear(kernels.attention(q, plan, index), layer.output)

    def _normalize_heads(self, qkv_MHD: Tensor, heads: HeadShape, q_norm: Tensor, k_norm: Tensor) -> None:
        queries = qkv_MHD[:, : heads.query_heads]
        keys = qkv_MHD[:, heads.query_heads : heads.query_heads + heads.kv_heads]
        for part, norm in ((queries, q_norm), (keys, k_norm)):
            part.copy_(self._kernels.rms_norm(part, norm, self._config.rms_norm_eps))


def _feed_forward(rank: Rank[PlanT], normed: Tensor, index: int) -> Tensor:
    kernels, layer = rank.kernels, rank.layers[index]
    return kernels.linear(kernels.swiglu(kernels.linear(normed, layer.gate_up)), layer.down)
