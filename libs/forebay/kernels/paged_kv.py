"""Keys and values in the arena, rounded to its number format as they are written and widened again as they are read.

Knows number formats and where numbers and scales lie. Does not know sequences, nor what attention does.

A number is written with the same bits that `forebay.kernels.kv_numbers` gives it, and read as the same float32 before
that is rounded to the activation dtype. Every row (one token's head) is rounded by itself, so batch invariance holds.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from forebay.kernels.arena_rows import ArenaRows

_SMALLEST_AMAX = 2**-119
_LARGEST_SCALE = float.fromhex("0x1.020406p+121")


class KvIndex(NamedTuple):
    """Where some blocks or tokens lie: rows of the numbers and, where the arena has them, of the scales."""

    numbers: Tensor
    scales: Tensor | None


class PagedKv:
    """One arena, written and read in the activation dtype. Axes as in `forebay.kernels.port`."""

    def __init__(self, blocks: Tensor, scales: Tensor | None, dtype: torch.dtype) -> None:
        """Args:
        blocks: [blocks, layers, 2, kv_heads, block_tokens, head_dim], contiguous within a block.
        scales: [blocks, layers, 2, kv_heads, block_tokens], likewise; None where the numbers are not int8.
        dtype: of activations.
        """
        self._blocks = blocks
        self._scales = scales
        self._dtype = dtype
        # Torch has no indexing of 8-bit floats.
        is_float8 = blocks.dtype is torch.float8_e4m3fn
        self._rows = ArenaRows(blocks.view(torch.uint8) if is_float8 else blocks)
        self._scale_rows = None if scales is None else ArenaRows(scales.unsqueeze(-1))
        self.block_tokens = self._rows.block_tokens

    def clear(self, block: int) -> None:
        """Makes the whole block zeros."""
        self._blocks[block].zero_()
        if self._scales is not None:
            self._scales[block].zero_()

    def block_index(self, tables_SB: np.ndarray) -> KvIndex:
        """Where blocks lie, in order [key|value, sequence, kv_head, block]."""
        scales = None if self._scale_rows is None else self._scale_rows.block_index(tables_SB)
        return KvIndex(self._rows.block_index(tables_SB), scales)

    def token_index(self, blocks_M: np.ndarray, slots_M: np.ndarray) -> KvIndex:
        """Where single tokens lie, in order [token, key|value, kv_head]."""
        scales = None if self._scale_rows is None else self._scale_rows.token_index(blocks_M, slots_M)
        return KvIndex(self._rows.token_index(blocks_M, slots_M), scales)

    def write(self, layer: int, index: KvIndex, kv_MGD: Tensor) -> None:
        """Args: kv_MGD: [M, 2G, D], key heads before value heads."""
        rows = self._rows.tokens_of_layer[layer]
        if self._scale_rows is None or index.scales is None:
            numbers = kv_MGD if kv_MGD.dtype is self._blocks.dtype else _rounded(kv_MGD, self._blocks.dtype)
        else:
            numbers, scales = _quantized(kv_MGD)
            self._scale_rows.tokens_of_layer[layer].index_copy_(0, index.scales, scales.reshape(-1, 1))
        rows.index_copy_(0, index.numbers, numbers.view(rows.dtype).reshape(-1, rows.shape[1]))

    def read(self, layer: int, index: KvIndex, context_tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values of whole blocks in the activation dtype, each [sequences * G, context_tokens, D]."""
        shape = (2, -1, context_tokens, self._rows.head_dim)
        gathered = self._rows.blocks_of_layer[layer].index_select(0, index.numbers)
        numbers = gathered.view(self._blocks.dtype).view(shape)
        if self._scale_rows is not None and index.scales is not None:
            scales = self._scale_rows.blocks_of_layer[layer].index_select(0, index.scales).view(shape[:-1])
            numbers = numbers.float() * scales[..., None]
        keys, values = numbers.to(self._dtype)
        return keys, values


def _rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Finite numbers beyond the range become its largest; torch itself makes NaN of infinities where it must."""
    wide, largest = numbers.float(), torch.finfo(dtype).max
    return torch.where(wide.isinf(), wide, wide.clamp(-largest, largest)).to(dtype)


def _quantized(kv: Tensor) -> tuple[Tensor, Tensor]:
    """Integers and the scale of each row, NaN where a row holds NaN or an infinity."""
    wide = kv.float()
    amax = wide.abs().amax(-1, keepdim=True)
    is_finite = amax.isfinite()
    is_kept = is_finite & (amax >= _SMALLEST_AMAX)
    divisor = torch.where(is_kept, amax, 1.0)
    integers = (torch.where(is_kept, wide, 0.0) * (127.0 / divisor)).round().to(torch.int8)
    scales = torch.where(is_kept, (divisor / 127.0).clamp(max=_LARGEST_SCALE), 0.0)
    return integers, torch.where(is_finite, scales, torch.nan)
