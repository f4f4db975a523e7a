"""The geometry of an arena: which rows of memory hold a block or a token. Knows strides, not what the numbers mean."""

from math import gcd

import numpy as np
import torch
from torch import Tensor


class ArenaRows:
    """An arena seen as rows of equal length, so that one index reaches any block or token, per layer.

    A row is what divides both the block stride and a head's share of a block (or of a token), so any stride works.
    """

    def __init__(self, arena: Tensor) -> None:
        """Args: arena: [blocks, layers, 2, kv_heads, block_tokens, head_dim], contiguous within a block."""
        _, layers, _, self.kv_heads, self.block_tokens, self.head_dim = arena.shape
        self._stride = arena.stride(0)
        self._head = self.block_tokens * self.head_dim
        self._block_unit = gcd(self._stride, self._head)
        self._token_unit = gcd(self._stride, self.head_dim)
        self._layer = 2 * self.kv_heads * self._head
        self.blocks_of_layer = [self._rows(arena, self._block_unit, layer) for layer in range(layers)]
        self.tokens_of_layer = [self._rows(arena, self._token_unit, layer) for layer in range(layers)]

    def _rows(self, arena: Tensor, unit: int, layer: int) -> Tensor:
        length = (arena.shape[0] - 1) * self._stride + (arena.shape[1] - layer) * self._layer
        start = arena.storage_offset() + layer * self._layer
        return arena.as_strided((length // unit, unit), (unit, 1), start)

    def block_index(self, tables_SB: np.ndarray) -> Tensor:
        """Rows of the blocks [sequence, block], in order [key|value, sequence, kv_head, block]."""
        heads = np.arange(2 * self.kv_heads).reshape(2, 1, self.kv_heads, 1) * self._head
        first = tables_SB[None, :, None, :] * self._stride + heads
        return _spread(first, self._head, self._block_unit)

    def token_index(self, blocks_M: np.ndarray, slots_M: np.ndarray) -> Tensor:
        """Rows of single tokens, in order [token, key|value, kv_head]."""
        heads = np.arange(2 * self.kv_heads) * self._head
        first = (blocks_M * self._stride + slots_M * self.head_dim)[:, None] + heads
        return _spread(first, self.head_dim, self._token_unit)


def _spread(first: np.ndarray, length: int, unit: int) -> Tensor:
    """Row indexes of runs of `length` numbers that begin at `first`, rows being `unit` numbers long."""
    rows = first.reshape(-1, 1) // unit + np.arange(length // unit)
    return torch.from_numpy(rows.reshape(-1))
