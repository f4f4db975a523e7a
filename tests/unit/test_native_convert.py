"""Conversion of KV blocks: native as the reference bit for bit, on every instruction set, and what it must keep."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from forebay.errors import LayoutMismatchError
from forebay.kernels.converter import block_converter
from forebay.kernels.converter_native import NativeConverter
from forebay.kernels.converter_reference import ReferenceConverter
from forebay.kernels.cpu import library
from forebay.kernels.cpu.instruction_set import supported_sets
from forebay.kernels.cpu.library import load_library
from forebay.kernels.kv_numbers import RAW_TYPES, decode, decode_int8, encode
from forebay.kv.conversion import plan_conversion
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout

drawn = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module", params=[one.value for one in supported_sets()])
def native(request):
    wanted = next(one for one in supported_sets() if one.value == request.param)
    return load_library(wanted)


@st.composite
def layouts(draw):
    """Sources and a target that can be converted, heads split unevenly on both sides."""
    total = draw(st.integers(1, 5))
    cuts = sorted({0, total, *draw(st.lists(st.integers(1, total), max_size=2))})
    sizes = st.sampled_from([1, 2, 4, 8, 16, 32])
    source_tokens, target_tokens = draw(sizes), draw(sizes)
    source_order, target_order = draw(st.sampled_from(AxisOrder)), draw(st.sampled_from(AxisOrder))
    is_paired = AxisOrder.LAYER_KV_HEAD_PAIRED in (source_order, target_order)
    head_dim = draw(st.sampled_from([2, 4, 6, 16, 20, 34, 64] if is_paired else [1, 2, 3, 5, 16, 33, 64]))
    whole = KvLayout(draw(st.sampled_from(KvDtype)), draw(st.integers(1, 3)), total, head_dim, source_tokens)
    for order, tokens in ((source_order, source_tokens), (target_order, target_tokens)):
        assume(order is not AxisOrder.LAYER_KV_HEAD_PAIRED or tokens % 2 == 0)
    sources = [
        replace(whole, order=source_order, first_kv_head=first, kv_heads=end - first, total_kv_heads=total)
        for first, end in pairwise(cuts)
    ]
    first = draw(st.integers(0, total - 1))
    target = replace(
        whole,
        dtype=draw(st.sampled_from(KvDtype)),
        order=target_order,
        block_tokens=target_tokens,
        first_kv_head=first,
        kv_heads=draw(st.integers(1, total - first)),
        total_kv_heads=total,
    )
    return draw(st.permutations(sources)), target


def random_blocks(layout, count, seed, *, has_faults=False):
    """Blocks of random bits; without faults, of numbers (and scales) of many magnitudes, all finite."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, layout.block_bytes), np.uint8)
    if has_faults:
        return list(blocks)
    if layout.scale_offset_bytes is not None:
        scales = blocks[:, layout.scale_offset_bytes :].view(np.float32)
        scales[:] = np.exp(random.normal(size=scales.shape) * 4)
        return list(blocks)
    shape = count, layout.block_bytes // layout.dtype.size_bytes
    numbers = random.normal(size=shape) * np.exp(random.normal(size=shape) * 4)
    return list(encode(numbers.astype(np.float32), layout.dtype).view(np.uint8))


def some_run(plan, token_count, seed, *, has_faults=False):
    return [
        random_blocks(layout, plan.source_block_count(token_count), seed + number, has_faults=has_faults)
        for number, layout in enumerate(plan.sources)
    ]


def converted(converter, sources, token_count):
    """The target's blocks, in memory that was not zero before and begins at odd addresses."""
    target = converter.plan.target
    memory = [
        np.full(target.block_bytes + 1, 0xA5, np.uint8) for _ in range(converter.plan.target_block_count(token_count))
    ]
    views = [[memoryview(block).toreadonly() for block in blocks] for blocks in sources]
    converter.convert(views, [memoryview(one)[1:] for one in memory], token_count)
    assert all(one[0] == 0xA5 for one in memory)
    return [one[1:] for one in memory]


def row_places(layout, matrix, head, slot):
    """Where in a block the numbers of one token's head lie, as `AxisOrder` says."""
    tokens, dims, heads = layout.block_tokens, layout.head_dim, layout.kv_heads
    start = (matrix * heads + head) * tokens * dims
    d = np.arange(dims)
    if layout.order is AxisOrder.LAYER_KV_TOKEN_HEAD:
        return ((matrix * tokens + slot) * heads + head) * dims + d
    if layout.order is AxisOrder.LAYER_KV_HEAD_TOKEN:
        return start + slot * dims + d
    if matrix % 2 == 0:
        return start + (d // 2 * tokens + slot) * 2 + d % 2
    return start + (slot // 2 * dims + d) * 2 + slot % 2


def numbers_of(blocks, layout, token_count):
    """[2 * layer + key|value, the model's head, token, dim] as float32; NaN where the layout has no such head."""
    shape = 2 * layout.layers, layout.model_kv_heads, token_count, layout.head_dim
    found = np.full(shape, np.nan, np.float32)
    end = layout.scale_offset_bytes
    for matrix, head, token in np.ndindex(shape[0], layout.kv_heads, token_count):
        block, slot = blocks[token // layout.block_tokens], token % layout.block_tokens
        numbers = block[:end].view(RAW_TYPES[layout.dtype])
        raw = numbers[row_places(layout, matrix, head, slot)]
        if end is None:
            row = decode(raw, layout.dtype)
        else:
            scale = block[end:].view(np.float32)[(matrix * layout.kv_heads + head) * layout.block_tokens + slot]
            row = decode_int8(raw, scale)
        found[matrix, layout.head_range[head], token] = row
    return found


def numbers_of_shards(plan, sources, token_count):
    """What the plan's sources hold together."""
    found = numbers_of(sources[0], plan.sources[0], token_count)
    for blocks, layout in zip(sources[1:], plan.sources[1:], strict=True):
        found[:, layout.head_range] = numbers_of(blocks, layout, token_count)[:, layout.head_range]
    return found


@drawn
@given(pair=layouts(), token_count=st.integers(0, 70), seed=st.integers(0, 2**16), has_faults=st.booleans())
def test_native_and_reference_give_the_same_bits(native, pair, token_count, seed, has_faults):
    plan = plan_conversion(*pair)
    sources = some_run(plan, token_count, seed, has_faults=has_faults)

    expected = converted(ReferenceConverter(plan), sources, token_count)

    for ours, theirs in zip(converted(NativeConverter(plan, native), sources, token_count), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@drawn
@given(pair=layouts(), token_count=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_every_number_arrives_exactly_or_within_the_bound(native, pair, token_count, seed):
    plan = plan_conversion(*pair)
    sources = some_run(plan, token_count, seed)

    blocks = converted(NativeConverter(plan, native), sources, token_count)

    heads = plan.target.head_range
    original = numbers_of_shards(plan, sources, token_count)[:, heads].astype(np.float64)
    arrived = numbers_of(blocks, plan.target, token_count)[:, heads].astype(np.float64)
    bound = plan.error_bound
    if bound is None:
        np.testing.assert_array_equal(arrived, original)
        return
    cut = original if bound.largest is None else np.clip(original, -bound.largest, bound.largest)
    magnitudes = np.abs(cut)
    allowed = bound.relative * magnitudes + bound.of_row * magnitudes.max(-1, keepdims=True) + bound.absolute
    assert (np.abs(arrived - cut) <= allowed).all()


@drawn
@given(pair=layouts(), token_count=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_a_fault_never_becomes_a_finite_number(native, pair, token_count, seed):
    plan = plan_conversion(*pair)
    sources = some_run(plan, token_count, seed, has_faults=True)

    blocks = converted(NativeConverter(plan, native), sources, token_count)

    heads = plan.target.head_range
    is_sound = np.isfinite(numbers_of_shards(plan, sources, token_count)[:, heads])
    is_finite = np.isfinite(numbers_of(blocks, plan.target, token_count)[:, heads])
    if plan.target.dtype is KvDtype.INT8 is not plan.sources[0].dtype:
        is_sound = np.broadcast_to(is_sound.all(-1, keepdims=True), is_sound.shape)
    np.testing.assert_array_equal(is_finite, is_sound)


@drawn
@given(pair=layouts(), token_count=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_there_and_back_gives_every_bit_again_where_the_target_holds_the_dtype(native, pair, token_count, seed):
    sources, target = pair
    whole = replace(target, kv_heads=target.model_kv_heads, first_kv_head=0, dtype=KvDtype.FLOAT32)
    if sources[0].dtype is KvDtype.INT8:  # its scales are not those of the largest number, which float32 forgets
        whole = replace(whole, dtype=KvDtype.INT8)
    there = plan_conversion(sources, whole)
    blocks = some_run(there, token_count, seed)
    middle = converted(NativeConverter(there, native), blocks, token_count)

    for layout, original in zip(sources, blocks, strict=True):
        back = converted(NativeConverter(plan_conversion([whole], layout), native), [middle], token_count)

        np.testing.assert_array_equal(
            numbers_of(back, layout, token_count)[:, layout.head_range].view(np.uint32),
            numbers_of(original, layout, token_count)[:, layout.head_range].view(np.uint32),
        )


@pytest.mark.parametrize("dtype", KvDtype)
@pytest.mark.parametrize("order", AxisOrder)
def test_what_a_last_block_has_no_tokens_for_is_zeros(native, dtype, order):
    source = KvLayout(KvDtype.FLOAT32, layers=1, kv_heads=2, head_dim=4, block_tokens=16)
    plan = plan_conversion([source], replace(source, dtype=dtype, order=order, block_tokens=32))
    ones = [np.ones(source.block_bytes // 4, np.float32).view(np.uint8) for _ in range(2)]

    (block,) = converted(NativeConverter(plan, native), [ones], 19)

    numbers = numbers_of([block], plan.target, 32)
    assert (numbers[:, :, :19] == 1).all()
    assert (numbers[:, :, 19:] == 0).all()


LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=1, kv_heads=1, head_dim=2, block_tokens=4)
PLAN = plan_conversion([LAYOUT], replace(LAYOUT, dtype=KvDtype.INT8, block_tokens=8))


@pytest.mark.parametrize("make", [ReferenceConverter, lambda plan: NativeConverter(plan, load_library())])
@pytest.mark.parametrize(
    ("sources", "targets", "token_count", "field"),
    [
        ([], [bytearray(96)], 8, "sources"),
        ([[bytes(32)]], [bytearray(96)], 8, "sources"),
        ([[bytes(32), bytes(31)]], [bytearray(96)], 8, "sources"),
        ([[bytes(32)] * 3], [bytearray(96)], 8, "sources"),
        ([[bytes(32)] * 2], [], 8, "targets"),
        ([[bytes(32)] * 2], [bytearray(95)], 8, "targets"),
        ([[bytes(32)] * 2], [bytes(96)], 8, "targets"),
        ([[]], [], -1, "token_count"),
    ],
)
def test_blocks_that_are_not_those_of_the_run_are_refused(make, sources, targets, token_count, field):
    with pytest.raises(LayoutMismatchError) as refusal:
        make(PLAN).convert(
            [list(map(memoryview, blocks)) for blocks in sources], list(map(memoryview, targets)), token_count
        )

    assert refusal.value.field == field


def test_a_machine_converts_natively_where_it_can_and_with_numpy_elsewhere(monkeypatch):
    assert isinstance(block_converter(PLAN), NativeConverter)
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(library, "_loaded", {})

    assert isinstance(block_converter(PLAN), ReferenceConverter)
