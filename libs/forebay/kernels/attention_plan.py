"""Where each row of a step reads and writes KV: index tensors, made once per step and used by every layer.

Knows how sequences are grouped; not the arena's geometry, and computes no attention.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forebay.kernels.paged_kv import KvIndex, PagedKv
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

    read_index: KvIndex  # order [key|value, sequence, kv_head, block]
    sequences: int
    context_tokens: int
    tiles: tuple[Tile, ...]


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """One step's reads and writes."""

    write_index: KvIndex  # order [row, key|value, kv_head]
    groups: tuple[Group, ...]


def invariant_rows(rows: int, reduction: int, dtype: torch.dtype) -> int:
    """Rows a matrix product must have at least for its bits not to depend on their number.

    Measured: oneDNN (bfloat16) sums a long reduction otherwise when there is one row; MKL (float32) has other kernels
    below 4 rows and is held to whole vectors here.
    """
    if dtype == torch.bfloat16:
        return max(rows, 2) if reduction > ONEDNN_RUNNING_SUM else rows
    return -(-rows // 16) * 16


def plan_attention(spans: Sequence[Span], kv: PagedKv, heads: HeadShape, dtype: torch.dtype) -> AttentionPlan:
    """Index tensors for the rows of these spans. Single-token spans that follow each other share groups."""
    groups: list[Group] = []
    first_row = 0
    for members in _grouped(spans, kv.block_tokens):
        groups.append(_group(members, first_row, kv, heads, dtype))
        first_row += sum(span.token_count for span in members)
    return AttentionPlan(_write_index(spans, kv), tuple(groups))


def _write_index(spans: Sequence[Span], kv: PagedKv) -> KvIndex:
    blocks, slots = [], []
    for span in spans:
        positions = np.arange(span.start_token, span.end_token)
        blocks.append(np.asarray(span.block_table, dtype=np.int64)[positions // kv.block_tokens])
        slots.append(positions % kv.block_tokens)
    return kv.token_index(np.concatenate(blocks), np.concatenate(slots))


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


def _group(members: list[Span], first_row: int, kv: PagedKv, heads: HeadShape, dtype: torch.dtype) -> Group:
    block_count = max(-(-span.end_token // kv.block_tokens) for span in members)
    tables = np.empty((len(members), block_count), dtype=np.int64)
    for table, span in zip(tables, members, strict=True):
        used = -(-span.end_token // kv.block_tokens)
        table[:used] = span.block_table[:used]
        table[used:] = span.block_table[0]  # masked; its own block, so that no other sequence's values are read
    context_tokens = block_count * kv.block_tokens
    if members[0].token_count == 1:
        tiles = [_single_token_tile(members, first_row, context_tokens, heads, dtype)]
    else:
        tiles = list(_span_tiles(members[0], first_row, kv.block_tokens, heads, dtype))
    return Group(kv.block_index(tables), len(members), context_tokens, tuple(tiles))


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
