"""What can be converted into what, which parts are read from where, and what is refused by name."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from forebay.errors import LayoutMismatchError
from forebay.kv.conversion import HeadRead, plan_conversion
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout

LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=2, kv_heads=3, head_dim=4)


def shard(first: int, end: int, total: int = 3) -> KvLayout:
    return replace(LAYOUT, first_kv_head=first, kv_heads=end - first, total_kv_heads=total)


@pytest.mark.parametrize(("dtype", "number_bytes"), [(KvDtype.FLOAT32, 4), (KvDtype.FLOAT16, 2), (KvDtype.INT8, 1)])
def test_a_block_holds_its_numbers_and_scales(dtype, number_bytes):
    layout = replace(LAYOUT, dtype=dtype)
    rows = 2 * 2 * 3 * 32

    assert layout.block_bytes == rows * 4 * number_bytes + (rows * 4 if dtype is KvDtype.INT8 else 0)
    assert layout.scale_offset_bytes == (rows * 4 if dtype is KvDtype.INT8 else None)


def test_scales_begin_at_a_multiple_of_their_size():
    layout = KvLayout(KvDtype.INT8, layers=1, kv_heads=1, head_dim=1, block_tokens=1)

    assert (layout.scale_offset_bytes, layout.block_bytes) == (4, 12)


@pytest.mark.parametrize(
    ("sources", "target", "reads"),
    [
        ([shard(0, 3)], shard(0, 3), [HeadRead(0, 0, 0, 3)]),
        ([shard(0, 3)], shard(1, 2), [HeadRead(0, 1, 0, 1)]),
        ([shard(0, 1), shard(1, 3)], shard(0, 2), [HeadRead(0, 0, 0, 1), HeadRead(1, 0, 1, 1)]),
        ([shard(1, 3), shard(0, 1)], shard(0, 3), [HeadRead(1, 0, 0, 1), HeadRead(0, 0, 1, 2)]),
        ([shard(0, 2), shard(1, 3)], shard(1, 3), [HeadRead(0, 1, 0, 1), HeadRead(1, 1, 1, 1)]),
    ],
)
def test_heads_are_read_from_the_shards_that_have_them(sources, target, reads):
    assert list(plan_conversion(sources, target).head_reads) == reads


@given(st.data())
def test_every_target_head_is_read_once_from_where_it_lies(data):
    total = data.draw(st.integers(1, 8))
    ranges = st.integers(0, total - 1).flatmap(lambda first: st.tuples(st.just(first), st.integers(first + 1, total)))
    sources = [shard(*ends, total) for ends in data.draw(st.lists(ranges, min_size=1, max_size=5))]
    target = shard(*data.draw(ranges), total)
    assume(set(target.head_range) <= {head for source in sources for head in source.head_range})

    plan = plan_conversion(sources, target)

    read = [
        (sources[part.source].head_range[part.first_source_head + i], target.head_range[part.first_target_head + i])
        for part in plan.head_reads
        for i in range(part.head_count)
    ]
    assert read == [(head, head) for head in target.head_range]


@pytest.mark.parametrize(("source_tokens", "target_tokens"), [(16, 32), (32, 16), (16, 64), (64, 64), (1, 32)])
@pytest.mark.parametrize("token_count", [0, 1, 16, 33, 64, 65])
def test_blocks_of_both_sizes_hold_the_run(source_tokens, target_tokens, token_count):
    plan = plan_conversion([replace(LAYOUT, block_tokens=source_tokens)], replace(LAYOUT, block_tokens=target_tokens))

    assert plan.run_tokens % source_tokens == plan.run_tokens % target_tokens == 0
    for count, size in (
        (plan.source_block_count(token_count), source_tokens),
        (plan.target_block_count(token_count), target_tokens),
    ):
        assert (count - 1) * size < token_count <= count * size or count == token_count == 0


EXACT = {(dtype, dtype) for dtype in KvDtype} | {
    *((dtype, KvDtype.FLOAT32) for dtype in KvDtype),
    (KvDtype.FLOAT8_E4M3, KvDtype.BFLOAT16),
    (KvDtype.FLOAT8_E4M3, KvDtype.FLOAT16),
}


@pytest.mark.parametrize("source", KvDtype)
@pytest.mark.parametrize("target", KvDtype)
def test_a_conversion_is_exact_or_has_a_bound(source, target):
    plan = plan_conversion([replace(LAYOUT, dtype=source)], replace(LAYOUT, dtype=target))

    assert (plan.error_bound is None) == ((source, target) in EXACT)


PAIRED = replace(LAYOUT, order=AxisOrder.LAYER_KV_HEAD_PAIRED)


@pytest.mark.parametrize(
    ("sources", "target", "field"),
    [
        ([], LAYOUT, "sources"),
        ([LAYOUT], replace(LAYOUT, layers=3), "layers"),
        ([LAYOUT], replace(LAYOUT, head_dim=8), "head_dim"),
        ([LAYOUT], replace(LAYOUT, kv_heads=4), "total_kv_heads"),
        ([shard(0, 3, 6)], LAYOUT, "total_kv_heads"),
        ([replace(LAYOUT, block_tokens=24)], LAYOUT, "block_tokens"),
        ([shard(0, 1), shard(2, 3)], LAYOUT, "first_kv_head"),
        ([shard(0, 2)], LAYOUT, "first_kv_head"),
        ([shard(1, 3, 2)], LAYOUT, "first_kv_head"),
        ([replace(LAYOUT, first_kv_head=-1)], LAYOUT, "first_kv_head"),
        ([replace(LAYOUT, layers=0)], replace(LAYOUT, layers=0), "layers"),
        ([replace(LAYOUT, block_tokens=0)], LAYOUT, "block_tokens"),
        ([replace(LAYOUT, head_dim=3)], replace(PAIRED, head_dim=3), "head_dim"),
        ([replace(PAIRED, block_tokens=1)], LAYOUT, "block_tokens"),
        ([shard(0, 1), replace(shard(1, 3), dtype=KvDtype.FLOAT32)], LAYOUT, "dtype"),
        ([shard(0, 1), replace(shard(1, 3), block_tokens=16)], LAYOUT, "block_tokens"),
        ([shard(0, 1), replace(shard(1, 3), order=AxisOrder.LAYER_KV_TOKEN_HEAD)], LAYOUT, "order"),
        ([shard(0, 3), replace(shard(1, 3), layers=7)], LAYOUT, "layers"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(sources, target, field):
    with pytest.raises(LayoutMismatchError) as refusal:
        plan_conversion(sources, target)

    assert (refusal.value.field or "").removeprefix("layout.") == field
    assert field.removesuffix("s") in refusal.value.message
