"""The torch kernels: where KV lands in memory, and the facts of torch that batch invariance stands on."""

import pytest
import torch
import torch.nn.functional as F

from forebay.engine.arena import KvArena, KvPart
from forebay.errors import LayoutMismatchError
from forebay.kernels.attention_plan import GROUPING_WASTE_BLOCKS, plan_attention
from forebay.kernels.paged_kv import PagedKv
from forebay.kernels.port import HeadShape, RopeRows, Span
from forebay.kernels.torch_reference import EXACT_LOGITS, TorchKernels
from forebay.kv.layout import AxisOrder, KvDtype, KvLayout

HEADS = HeadShape(query_heads=6, kv_heads=2, head_dim=16)
DTYPES = [torch.bfloat16, torch.float32]


def arena(dtype=torch.float32, block_count=8, head_dim=16, padding_bytes=0) -> KvPart:
    layout = KvLayout(KvDtype(str(dtype).removeprefix("torch.")), 3, 2, head_dim, block_tokens=16)
    stride_bytes = layout.block_bytes + padding_bytes
    return KvArena(bytearray(block_count * stride_bytes), layout, block_count, stride_bytes).parts[0]


def kernels_over(memory: KvPart, dtype: torch.dtype, heads: HeadShape = HEADS) -> TorchKernels:
    return TorchKernels(heads, PagedKv(memory.blocks, memory.scales, dtype), dtype)


def no_rotation(rows: int, head_dim: int = 16) -> RopeRows:
    return RopeRows(torch.ones(rows, 1, 1, head_dim // 2), torch.zeros(rows, 1, 2, head_dim // 2))


def random_qkv(rows: int, dtype: torch.dtype, seed: int = 0, head_dim: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 10, head_dim, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "padding_bytes"), [(16, 0), (16, 4096), (40, 64), (24, 4)])
def test_keys_and_values_land_in_their_blocks_and_nowhere_else(dtype, head_dim, padding_bytes):
    memory = arena(dtype, head_dim=head_dim, padding_bytes=padding_bytes)
    kernels = kernels_over(memory, dtype, HeadShape(6, 2, head_dim))
    qkv = random_qkv(3, dtype, head_dim=head_dim)
    plan = kernels.begin_step([Span(15, 2, [4, 7]), Span(33, 1, [1, 2, 3])])

    kernels.rotate_and_write(qkv.clone(), no_rotation(3, head_dim), plan, layer=1)

    for row, (block, slot) in enumerate([(4, 15), (7, 0), (3, 1)]):
        assert torch.equal(memory.blocks[block, 1, 0, :, slot], qkv[row, 6:8])
        assert torch.equal(memory.blocks[block, 1, 1, :, slot], qkv[row, 8:10])
        memory.blocks[block, 1, :, :, slot] = 0
    assert memory.blocks.count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "padding_bytes"), [(16, 0), (40, 64), (24, 4)])
def test_attention_over_paged_blocks_is_plain_causal_attention(dtype, head_dim, padding_bytes):
    heads = HeadShape(6, 2, head_dim)
    memory = arena(dtype, head_dim=head_dim, padding_bytes=padding_bytes)
    kernels = kernels_over(memory, dtype, heads)
    qkv = random_qkv(40, dtype, head_dim=head_dim)
    plan = kernels.begin_step([Span(0, 40, [5, 0, 2])])
    q = kernels.rotate_and_write(qkv.clone(), no_rotation(40, head_dim), plan, layer=2)

    mixed = kernels.attention(q, plan, layer=2)

    q_HMD, k_HMD, v_HMD = qkv.float().transpose(0, 1).split([6, 2, 2])
    expected = F.scaled_dot_product_attention(q_HMD, k_HMD, v_HMD, is_causal=True, enable_gqa=True)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(mixed.float(), expected.transpose(0, 1).flatten(1), atol=tolerance, rtol=tolerance)


def test_rotation_turns_the_halves_of_a_head_as_complex_numbers():
    memory = arena()
    kernels = kernels_over(memory, torch.float32)
    qkv = random_qkv(1, torch.float32)
    angle = torch.arange(8) / 3
    rope = RopeRows(angle.cos().view(1, 1, 1, 8), torch.stack([-angle.sin(), angle.sin()]).view(1, 1, 2, 8))

    q = kernels.rotate_and_write(qkv.clone(), rope, kernels.begin_step([Span(0, 1, [0])]), layer=0)

    turned = torch.complex(qkv[..., :8], qkv[..., 8:]) * torch.polar(torch.ones(8), angle)
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(q, expected[:, :6])
    torch.testing.assert_close(memory.blocks[0, 0, 0, :, 0], expected[0, 6:8])
    assert torch.equal(memory.blocks[0, 0, 1, :, 0], qkv[0, 8:])  # values are not rotated


def test_a_block_that_is_begun_and_not_filled_forgets_what_was_in_it():
    memory = arena()
    memory.blocks.fill_(float("nan"))
    kernels = kernels_over(memory, torch.float32)

    plan = kernels.begin_step([Span(0, 20, [1, 2])])
    q = kernels.rotate_and_write(random_qkv(20, torch.float32), no_rotation(20), plan, layer=0)

    assert torch.isfinite(kernels.attention(q, plan, layer=0)).all()
    assert torch.isfinite(memory.blocks[2]).all()


def test_a_block_that_is_continued_keeps_what_is_in_it():
    memory = arena()
    memory.blocks.fill_(1.0)

    kernels_over(memory, torch.float32).begin_step([Span(17, 2, [1, 2]), Span(30, 2, [3, 4])])

    assert (memory.blocks == 1).all()


def test_single_tokens_share_a_group_until_padding_would_waste_too_much():
    kv = PagedKv(arena(block_count=64).blocks, None, torch.float32)
    table = list(range(64))
    near, far = Span(20, 1, table), Span(16 * (GROUPING_WASTE_BLOCKS + 2), 1, table)

    groups = plan_attention([near, near, far, Span(0, 5, table)], kv, HEADS, torch.bfloat16).groups

    assert [group.sequences for group in groups] == [2, 1, 1]


def test_silu_of_every_bfloat16_is_the_same_in_a_vector_and_alone():
    # torch's vector and scalar exp differ; rounding to bfloat16 must hide it, or swiglu would not be invariant.
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    numbers = numbers[torch.isfinite(numbers)]

    alone = torch.cat([F.silu(number[None]) for number in numbers.unbind()])

    assert torch.equal(F.silu(numbers), alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(576, 576), (576, 1536), (64, 2048), (100, 172)])
def test_rows_of_a_product_do_not_depend_on_their_number(dtype, outputs, inputs):
    kernels = kernels_over(arena(dtype), dtype)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, inputs, generator=generator).to(dtype)
    x = torch.randn(96, inputs, generator=generator).to(dtype)
    whole = kernels.linear(x, weight)

    for rows in (1, 2, 3, 4, 7, 12, 17, 31):
        for start in range(0, 96 - rows, rows):
            piece = slice(start, start + rows)
            assert torch.equal(kernels.linear(x[piece], weight), whole[piece]), (rows, start)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_swiglu_do_not_depend_on_their_number(dtype):
    kernels = kernels_over(arena(dtype), dtype)
    gate_up = torch.randn(50, 2 * 100, generator=torch.Generator().manual_seed(0)).to(dtype)

    whole = kernels.swiglu(gate_up)

    assert all(torch.equal(kernels.swiglu(gate_up[row : row + 1])[0], whole[row]) for row in range(50))


def test_the_likeliest_logits_are_not_rounded_to_bfloat16():
    kernels = kernels_over(arena(torch.bfloat16), torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(1000, 64, generator=generator).to(torch.bfloat16)
    x = torch.randn(5, 64, generator=generator).to(torch.bfloat16)
    exact = F.linear(x.float(), head.float())

    logits = kernels.logits(x, head)

    likeliest = exact.topk(EXACT_LOGITS // 2).indices
    torch.testing.assert_close(logits.gather(1, likeliest), exact.gather(1, likeliest), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits, exact, atol=0.1, rtol=0)
    assert torch.equal(torch.cat([kernels.logits(row, head) for row in x.split(1)]), logits)


@pytest.mark.parametrize(
    ("layout_change", "stride_bytes", "field"),
    [
        ({"order": AxisOrder.LAYER_KV_TOKEN_HEAD}, None, "layout.order"),
        ({"dtype": KvDtype.INT8}, 4098, "block_stride_bytes"),
        ({}, 100, "block_stride_bytes"),
        ({}, 12_289, "block_stride_bytes"),
        ({}, 20_000, "size_bytes"),
    ],
)
def test_an_arena_that_does_not_fit_its_layout_is_refused(layout_change, stride_bytes, field):
    layout = KvLayout(
        **{"dtype": KvDtype.FLOAT32, "layers": 3, "kv_heads": 2, "head_dim": 16, "block_tokens": 16} | layout_change
    )

    with pytest.raises(LayoutMismatchError) as refusal:
        KvArena(bytearray(4 * 12_288), layout, 4, stride_bytes)

    assert refusal.value.field == field
