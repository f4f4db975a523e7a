"""Where each row of a step reads and writes KV: index tensors, made once per step and used by every layer.

Knows the arena's geometry and how sequences are grouped; computes no attention.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
import torch
from torch import Tensor

from forebay.kernels.port import HeadShape, Span

TILE_TOKENS = 128
"""Query tokens of a prefill span that are computed together; bounds the scores and skips most of the masked half."""

ONEDNN_RUNNING_SUM = 1024
"""Longest reduction that oneDNN does not split; beyond it, appended zeros change where it does."""

ONEDNN_MULTIPLICATIONS = 16**3
"""Products of fewer multiplications torch does in a loop of its own, which rounds otherwise than oneDNN."""

SHORTEST_CONTEXT_TOKENS = 16
"""Smallest block size; a context is never padded to less than a block."""

GROUPING_WASTE_BLOCKS = 16
"""A further group of sequences costs about as much time as reading this many blocks for nothing."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Rows that are computed by one pair of matrix products: `sequences` times `tokens` rows."""

    rows: slice  # of the step
    sequences: int
    tokens: int
    context_tokens: int  # padded to whole blocks
    mask: Tensor  # 0 or -inf, broadcastable to [sequences * kv_heads, query_rows, context_tokens]
    query_rows: int  # tokens * group_size, padded to what the matrix product needs


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences whose KV is gathered together, padded to the longest."""

    read_index: Tensor  # rows of Arena geometry, order [key|value, sequence, kv_head, block]
    sequences: int
    context_tokens: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step's reads and writes."""

    write_index: Tensor  # order [row, key|value, kv_head]
    groups: tuple[Group, ...]


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

    @property
    def token_unit(self) -> int:
        """Numbers in one row of `tokens_of_layer`."""
        return self._token_unit

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


def invariant_rows(rows: int, reduction: int, dtype: torch.dtype) -> int:
    """Rows a matrix product must have at least for its bits not to depend on their number.

    Measured: oneDNN (bfloat16) sums a long reduction otherwise when there is one row; MKL (float32) has other kernels
    below 4 rows and is held to whole vectors here.
    """
    if dtype == torch.bfloat16:
        return max(rows, 2) if reduction > ONEDNN_RUNNING_SUM else rows
    return -(-rows // 16) * 16


def plan_attention(spans: Sequence[Span], rows: ArenaRows, heads: HeadShape, dtype: torch.dtype) -> AttentionPlan:
    """Index tensors for the rows of these spans. Single-token spans that follow each other share groups."""
    groups: list[Group] = []
    first_row = 0
    for members in _grouped(spans, rows.block_tokens):
        groups.append(_group(members, first_row, rows, heads, dtype))
        first_row += sum(span.token_count for span in members)
    return AttentionPlan(_write_index(spans, rows), tuple(groups))


def _write_index(spans: Sequence[Span], rows: ArenaRows) -> Tensor:
    blocks, slots = [], []
    for span in spans:
        positions = np.arange(span.start_token, span.end_token)
        blocks.append(np.asarray(span.block_table, dtype=np.int64)[positions // rows.block_tokens])
        slots.append(positions % rows.block_tokens)
    return rows.token_index(np.concatenate(blocks), np.concatenate(slots))


def _grouped(spans: Sequence[Span], block_tokens: int) -> Iterator[list[Span]]:
    members: list[Span] = []
    for span in spans:
        if members and not _is_worth_joining(members, span, block_tokens):
            yield members
            members = []
        members.append(span)
    if members:
        yield members


def _is_worth_joining(members: list[Span], span: Span, block_tokens: int) -> bool:
    if span.token_count > 1 or members[0].token_count > 1:
        return False
    counts = [-(-member.end_token // block_tokens) for member in (*members, span)]
    return max(counts) * len(counts) - sum(counts) <= GROUPING_WASTE_BLOCKS


def _group(members: list[Span], first_row: int, rows: ArenaRows, heads: HeadShape, dtype: torch.dtype) -> Group:
    block_count = max(-(-span.end_token // rows.block_tokens) for span in members)
    tables = np.empty((len(members), block_count), dtype=np.int64)
    for table, span in zip(tables, members, strict=True):
        used = -(-span.end_token // rows.block_tokens)
        table[:used] = span.block_table[:used]
        table[used:] = span.block_table[0]  # masked; its own block, so that no other sequence's values are read
    context_tokens = block_count * rows.block_tokens
    if members[0].token_count == 1:
        tiles = [_single_token_tile(members, first_row, context_tokens, heads, dtype)]
    else:
        tiles = list(_span_tiles(members[0], first_row, rows.block_tokens, heads, dtype))
    return Group(rows.block_index(tables), len(members), context_tokens, tuple(tiles))


def _single_token_tile(
    members: list[Span], first_row: int, context_tokens: int, heads: HeadShape, dtype: torch.dtype
) -> Tile:
    ends = torch.tensor([span.end_token for span in members])
    mask = _mask(torch.arange(context_tokens) >= ends[:, None], dtype)
    return Tile(
        rows=slice(first_row, first_row + len(members)),
        sequences=len(members),
        tokens=1,
        context_tokens=context_tokens,
        mask=mask.repeat_interleave(heads.kv_heads, 0)[:, None],
        query_rows=_query_rows(heads.group_size, heads, dtype),
    )


def _span_tiles(span: Span, first_row: int, block_tokens: int, heads: HeadShape, dtype: torch.dtype) -> Iterator[Tile]:
    for offset in range(0, span.token_count, TILE_TOKENS):
        tokens = min(TILE_TOKENS, span.token_count - offset)
        start = span.start_token + offset
        context_tokens = -(-(start + tokens) // block_tokens) * block_tokens
        query_rows = _query_rows(tokens * heads.group_size, heads, dtype)
        positions = start + torch.arange(query_rows) // heads.group_size
        yield Tile(
            rows=slice(first_row + offset, first_row + offset + tokens),
            sequences=1,
            tokens=tokens,
            context_tokens=context_tokens,
            mask=_mask(torch.arange(context_tokens) > positions[:, None], dtype),
            query_rows=query_rows,
        )


def _query_rows(rows: int, heads: HeadShape, dtype: torch.dtype) -> int:
    enough = -(-ONEDNN_MULTIPLICATIONS // (heads.head_dim * SHORTEST_CONTEXT_TOKENS))
    return invariant_rows(max(rows, enough), ONEDNN_RUNNING_SUM, dtype)


def _mask(is_hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(is_hidden.shape, dtype=dtype).masked_fill_(is_hidden, float("-inf"))
