"""Which rows and columns of a layer's matrices each rank of tensor parallelism computes with.

Query, key, value, gate and up are cut by rows, output and down by the columns that fit them, so a layer has two sums
over the ranks: after attention and after the feed-forward.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from forebay.engine.weights import LayerWeights
from forebay.models.config import DecoderConfig


def rank_layers(
    layers: Sequence[LayerWeights], config: DecoderConfig, kv_heads: Sequence[range]
) -> list[tuple[LayerWeights, ...]]:
    """By rank, its part of each layer. One rank has the layers as they are; of several each has copies of its own.

    kv_heads: by rank; together they are the model's, in order. Query heads go with their KV head, feed-forward as even
    as it goes.
    """
    if len(kv_heads) == 1:
        return [tuple(layers)]
    return [
        tuple(_part(layer, config, kv_heads[rank], _even(layer.down.shape[1], len(kv_heads), rank)) for layer in layers)
        for rank in range(len(kv_heads))
    ]


def _even(count: int, ranks: int, rank: int) -> range:
    each, more = divmod(count, ranks)
    start = rank * each + min(rank, more)
    return range(start, start + each + (rank < more))


def _part(layer: LayerWeights, config: DecoderConfig, kv_heads: range, inner: range) -> LayerWeights:
    group, dim = config.query_heads // config.kv_heads, config.head_dim
    queries = slice(kv_heads.start * group * dim, kv_heads.stop * group * dim)
    keys = range(config.query_heads + kv_heads.start, config.query_heads + kv_heads.stop)
    values = range(keys.start + config.kv_heads, keys.stop + config.kv_heads)
    rows = [queries, *(slice(heads.start * dim, heads.stop * dim) for heads in (keys, values))]
    up = layer.down.shape[1]
    gate_up = [slice(inner.start, inner.stop), slice(up + inner.start, up + inner.stop)]
    return replace(
        layer,
        qkv=_rows(layer.qkv, rows),
        qkv_bias=None if layer.qkv_bias is None else _rows(layer.qkv_bias, rows),
        output=layer.output[:, queries].contiguous(),
        gate_up=_rows(layer.gate_up, gate_up),
        down=layer.down[:, inner.start : inner.stop].contiguous(),
    )


def _rows(tensor: Tensor, some: Sequence[slice]) -> Tensor:
    return torch.cat([tensor[rows] for rows in some])
