"""Conversion of KV blocks in numpy: any machine, and what the native converter is held to.

Axes: L layers, G kv heads of the block, T tokens of the block, D head_dim. "Rows" are [2 (key, value), L, G, T, D].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forebay.kernels.converter_run import Block, converter_run
from forebay.kernels.kv_numbers import RAW_TYPES, Floats, Raw, decode, decode_int8, encode, encode_int8
from forebay.kv.conversion import ConversionPlan
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout


@dataclass(frozen=True, slots=True)
class _Rows:
    """Numbers of some tokens of all heads, and their scales where the dtype has them."""

    numbers: Raw  # [2, L, G, T, D]
    scales: Floats | None  # [2, L, G, T]


class ReferenceConverter:
    """`forebay.kernels.converter.BlockConverter` in numpy."""

    def __init__(self, plan: ConversionPlan) -> None:
        self.plan = plan

    def convert(self, sources: Sequence[Sequence[memoryview]], targets: Sequence[memoryview], token_count: int) -> None:
        """As BlockConverter.convert."""
        run = converter_run(self.plan, sources, targets, token_count)
        if token_count == 0:
            return
        shards = [
            _joined([_read(block, layout) for block in blocks], axis=3)
            for layout, blocks in zip(self.plan.sources, run.sources, strict=True)
        ]
        heads = _joined(
            [
                _part(shards[read.source], 2, slice(read.first_source_head, read.first_source_head + read.head_count))
                for read in self.plan.head_reads
            ],
            axis=2,
        )
        rows = _rounded(_part(heads, 3, slice(token_count)), self.plan.sources[0].dtype, self.plan.target.dtype)
        block_tokens = self.plan.target.block_tokens
        for number, block in enumerate(run.targets):
            tokens = slice(number * block_tokens, (number + 1) * block_tokens)
            _write(block, self.plan.target, _part(rows, 3, tokens))


def _joined(parts: Sequence[_Rows], axis: int) -> _Rows:
    scales = [part.scales for part in parts if part.scales is not None]
    return _Rows(
        np.concatenate([part.numbers for part in parts], axis), np.concatenate(scales, axis) if scales else None
    )


def _part(rows: _Rows, axis: int, some: slice) -> _Rows:
    index = (slice(None),) * axis + (some,)
    return _Rows(rows.numbers[index], None if rows.scales is None else rows.scales[index])


def _rounded(rows: _Rows, from_dtype: KvDtype, to_dtype: KvDtype) -> _Rows:
    if from_dtype is to_dtype:
        return rows
    numbers = decode(rows.numbers, from_dtype) if rows.scales is None else decode_int8(rows.numbers, rows.scales)
    if to_dtype is KvDtype.INT8:
        return _Rows(*encode_int8(numbers))
    return _Rows(encode(numbers, to_dtype), None)


def _read(block: Block, layout: KvLayout) -> _Rows:
    keys, values = _matrices(block, layout)
    numbers = np.stack([_paired_keys_to_rows(keys, layout), _paired_values_to_rows(values, layout)])
    return _Rows(numbers, _scales(block, layout))


def _write(block: Block, layout: KvLayout, rows: _Rows) -> None:
    """Writes the tokens there are, and zeros for the rest of the block."""
    block[:] = 0
    keys, values = _matrices(block, layout)
    numbers = _padded(rows.numbers, layout.block_tokens)
    if layout.order is AxisOrder.LAYER_KV_HEAD_PAIRED:
        keys[:] = numbers[0].reshape(*numbers.shape[1:4], -1, 2).swapaxes(2, 3)
        values[:] = numbers[1].reshape(*numbers.shape[1:3], -1, 2, layout.head_dim).swapaxes(3, 4)
    else:
        keys[:], values[:] = numbers
    scales = _scales(block, layout)
    if scales is not None and rows.scales is not None:
        scales[..., : rows.scales.shape[3]] = rows.scales


def _padded(numbers: Raw, block_tokens: int) -> Raw:
    missing_tokens = block_tokens - numbers.shape[3]
    return np.pad(numbers, ((0, 0), (0, 0), (0, 0), (0, missing_tokens), (0, 0)))


def _matrices(block: Block, layout: KvLayout) -> tuple[Raw, Raw]:
    """Keys and values where they lie: [L, G, T, D], or keys [L, G, D / 2, T, 2] and values [L, G, T / 2, D, 2]."""
    end = layout.block_bytes if layout.scale_offset_bytes is None else layout.scale_offset_bytes
    tokens, dims = layout.block_tokens, layout.head_dim
    count = layout.layers * 2 * layout.kv_heads * tokens * dims
    numbers = block[:end].view(RAW_TYPES[layout.dtype])[:count]
    if layout.order is AxisOrder.LAYER_KV_TOKEN_HEAD:
        split = numbers.reshape(layout.layers, 2, tokens, layout.kv_heads, dims).swapaxes(2, 3)
        return split[:, 0], split[:, 1]
    whole = numbers.reshape(layout.layers, 2, layout.kv_heads, -1)
    if layout.order is AxisOrder.LAYER_KV_HEAD_PAIRED:
        heads = layout.layers, layout.kv_heads
        return _view(whole[:, 0], (*heads, dims // 2, tokens, 2)), _view(whole[:, 1], (*heads, tokens // 2, dims, 2))
    shape = (layout.layers, layout.kv_heads, tokens, dims)
    return _view(whole[:, 0], shape), _view(whole[:, 1], shape)


def _view(matrix: Raw, shape: tuple[int, ...]) -> Raw:
    return matrix.reshape(shape, copy=False)


def _paired_keys_to_rows(keys: Raw, layout: KvLayout) -> Raw:
    if layout.order is not AxisOrder.LAYER_KV_HEAD_PAIRED:
        return keys
    return keys.swapaxes(2, 3).reshape(layout.layers, layout.kv_heads, layout.block_tokens, layout.head_dim)


def _paired_values_to_rows(values: Raw, layout: KvLayout) -> Raw:
    if layout.order is not AxisOrder.LAYER_KV_HEAD_PAIRED:
        return values
    return values.swapaxes(3, 4).reshape(layout.layers, layout.kv_heads, layout.block_tokens, layout.head_dim)


def _scales(block: Block, layout: KvLayout) -> NDArray[np.float32] | None:
    """[2, L, G, T], sharing the block's memory."""
    if layout.scale_offset_bytes is None:
        return None
    shape = (layout.layers, 2, layout.kv_heads, layout.block_tokens)
    return block[layout.scale_offset_bytes :].view(np.float32).reshape(shape).swapaxes(0, 1)
