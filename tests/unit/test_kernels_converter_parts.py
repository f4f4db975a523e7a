"""Blocks of several ranks' parts: each part is what a block of its heads alone would be, and no bit is lost."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import LayoutMismatchError
from forebay.kernels.converter import block_converter, reference_converter
from forebay.kv.conversion import plan_conversion
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout

whole = st.builds(
    KvLayout,
    dtype=st.sampled_from(KvDtype),
    layers=st.integers(1, 2),
    kv_heads=st.integers(1, 5),
    head_dim=st.sampled_from([2, 6, 16]),
    block_tokens=st.sampled_from([2, 8, 16]),
    order=st.sampled_from(AxisOrder),
)
ranked = whole.flatmap(lambda one: st.builds(replace, st.just(one), ranks=st.integers(1, one.kv_heads)))


def other_of(one: KvLayout, draw: st.DataObject) -> KvLayout:
    """A layout that it can be converted to."""
    return replace(
        one,
        dtype=draw.draw(st.sampled_from(KvDtype)),
        block_tokens=draw.draw(st.sampled_from([2, 8, 16])),
        order=draw.draw(st.sampled_from(AxisOrder)),
        ranks=draw.draw(st.integers(1, one.kv_heads)),
    )


def some_blocks(layout: KvLayout, count: int, seed: int) -> list[memoryview]:
    """Blocks of finite numbers."""
    plain = replace(layout, dtype=KvDtype.FLOAT32, order=AxisOrder.LAYER_KV_HEAD_TOKEN, ranks=1)
    plan = plan_conversion([plain], layout)
    random = np.random.default_rng(seed)
    numbers = [random.normal(size=plain.block_bytes // 4).astype(np.float32).view(np.uint8).data for _ in range(count)]
    return converted(plan, [numbers], count * layout.block_tokens)


def converted(plan, sources, token_count: int) -> list[memoryview]:  # type: ignore[no-untyped-def]
    targets = [memoryview(bytearray(plan.target.block_bytes)) for _ in range(plan.target_block_count(token_count))]
    reference_converter(plan).convert(sources, targets, token_count)
    return targets


@settings(max_examples=150, deadline=None)
@given(one=ranked, token_count=st.integers(1, 33), seed=st.integers(0, 99), draw=st.data())
def test_each_part_is_converted_as_a_block_of_its_heads(one, token_count, seed, draw) -> None:  # type: ignore[no-untyped-def]
    other = other_of(one, draw)
    plan = plan_conversion([one], other)
    blocks = some_blocks(one, plan.source_block_count(token_count), seed)
    ours = converted(plan, [blocks], token_count)
    sources = [
        [block[offset : offset + part.block_bytes] for block in blocks]
        for part, offset in zip(one.parts, one.part_offsets_bytes, strict=True)
    ]
    for part, offset in zip(other.parts, other.part_offsets_bytes, strict=True):
        alone = converted(plan_conversion(one.parts, part), sources, token_count)
        assert [bytes(block[offset : offset + part.block_bytes]) for block in ours] == list(map(bytes, alone))
    assert sum(part.block_bytes for part in other.parts) == other.block_bytes
    assert [head for part in other.parts for head in part.head_range] == list(other.head_range)


@settings(max_examples=150, deadline=None)
@given(one=ranked, block_count=st.integers(1, 3), seed=st.integers(0, 99), ranks=st.integers(1, 5))
def test_ranks_alone_change_no_bit(one, block_count, seed, ranks) -> None:  # type: ignore[no-untyped-def]
    other, token_count = replace(one, ranks=min(ranks, one.kv_heads)), block_count * one.block_tokens
    blocks = some_blocks(one, block_count, seed)
    there, back = plan_conversion([one], other), plan_conversion([other], one)
    assert there.error_bound is None
    middle = converted(there, [blocks], token_count)
    assert list(map(bytes, converted(back, [middle], token_count))) == list(map(bytes, blocks))
    native = [memoryview(bytearray(other.block_bytes)) for _ in middle]
    block_converter(there).convert([blocks], native, token_count)
    assert list(map(bytes, native)) == list(map(bytes, middle))


def test_more_ranks_than_heads_are_refused() -> None:
    one = KvLayout(KvDtype.FLOAT32, layers=1, kv_heads=2, head_dim=4)
    for ranks in (0, 3):
        with pytest.raises(LayoutMismatchError) as caught:
            plan_conversion([one], replace(one, ranks=ranks))
        assert caught.value.field == "layout.ranks"


def test_a_block_that_is_too_small_is_refused() -> None:
    one = KvLayout(KvDtype.INT8, layers=1, kv_heads=3, head_dim=4, ranks=2)
    plan = plan_conversion([one], replace(one, ranks=3))
    block = memoryview(bytearray(one.block_bytes))
    with pytest.raises(LayoutMismatchError):
        reference_converter(plan).convert([[block[:-1]]], [block], 1)
