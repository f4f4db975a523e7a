"""KV in the arena: written with the bits that conversion gives it, read as the numbers those bits stand for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from forebay.engine.arena import KvArena, KvPart
from forebay.kernels.kv_numbers import RAW_TYPES, decode, decode_int8, encode, encode_int8
from forebay.kernels.paged_kv import PagedKv
from forebay.kv.layout import KvDtype, KvLayout

TOKENS = 5
any_rows = arrays(np.uint32, (TOKENS, 4, 8), elements=st.integers(0, 2**32 - 1)).map(lambda bits: bits.view(np.float32))
mild_rows = arrays(np.float32, (TOKENS, 4, 8), elements=st.floats(-1000, 1000, width=32))


def written(kv_MGD: np.ndarray, dtype: KvDtype, padding_bytes: int) -> tuple[KvPart, PagedKv]:
    layout = KvLayout(dtype, layers=2, kv_heads=2, head_dim=8, block_tokens=4)
    stride_bytes = layout.block_bytes + padding_bytes
    (arena,) = KvArena(bytearray(4 * stride_bytes), layout, 4, stride_bytes).parts
    kv = PagedKv(arena.blocks, arena.scales, torch.float32)
    index = kv.token_index(np.array([2, 2, 2, 2, 1]), np.array([0, 1, 2, 3, 0]))
    kv.write(1, index, torch.from_numpy(kv_MGD.copy()))
    return arena, kv


@pytest.mark.parametrize("dtype", KvDtype)
@settings(deadline=None)
@given(kv_MGD=any_rows | mild_rows, padding_bytes=st.sampled_from([0, 4, 64]))
def test_what_is_written_has_the_bits_of_a_conversion(dtype, kv_MGD, padding_bytes):
    arena, kv = written(kv_MGD, dtype, padding_bytes)

    if arena.scales is None:
        raw = encode(kv_MGD, dtype)
        expected = decode(raw, dtype)
    else:
        raw, scales = encode_int8(kv_MGD)
        expected = decode_int8(raw, scales)
    keys, values = kv.read(1, kv.block_index(np.array([[2, 1]])), context_tokens=8)
    found = torch.stack([keys, values]).view(4, 8, 8)[:, :TOKENS].transpose(0, 1).numpy()
    np.testing.assert_array_equal(found, expected)
    block_MGD = arena.blocks[2, 1].view(torch.uint8).flatten(0, 1).transpose(0, 1).contiguous().numpy()
    is_number = ~np.isnan(expected[:4])
    np.testing.assert_array_equal(block_MGD.view(RAW_TYPES[dtype])[is_number], raw[:4][is_number])
    if arena.scales is not None:
        np.testing.assert_array_equal(arena.scales[2, 1].flatten(0, 1).T.numpy(), scales[:4])


@pytest.mark.parametrize("dtype", KvDtype)
def test_nothing_is_written_beside_the_tokens(dtype):
    arena, kv = written(np.ones((TOKENS, 4, 8), np.float32), dtype, padding_bytes=64)

    kv.clear(2)
    kv.clear(1)

    assert arena.blocks.float().count_nonzero() == 0
    assert arena.scales is None or arena.scales.count_nonzero() == 0
