"""Runs: every block that can be filled is filled once, from the source blocks that hold its tokens, and no other is."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from forebay.kv.bring_run import bring_runs
from forebay.kv.conversion import plan_conversion
from forebay.kv.layout import KvDtype, KvLayout

LAYOUT = KvLayout(KvDtype.FLOAT32, layers=1, kv_heads=1, head_dim=2)
sizes = st.sampled_from([4, 8, 16, 32, 64])
counts = st.integers(0, 40)


@given(sizes, sizes, counts, counts)
def test_full_blocks_are_filled_in_order_from_the_blocks_of_their_tokens(
    source_tokens: int, target_tokens: int, source_count: int, target_count: int
) -> None:
    source, target = (dataclasses.replace(LAYOUT, block_tokens=tokens) for tokens in (source_tokens, target_tokens))
    plan = plan_conversion((source,), target)
    runs = bring_runs(plan, source_count, target_count)
    filled = [index for run in runs for index in run.target_indexes]
    assert filled == list(range(min(target_count, source_count * source_tokens // target_tokens)))
    read = [index for run in runs for index in run.source_indexes]
    assert read == list(range(len(read))), "each source block once, in order"
    assert len(read) <= source_count
    for run in runs:
        assert run.target_indexes.start * target_tokens == run.source_indexes.start * source_tokens
        assert run.token_count == len(run.target_indexes) * target_tokens <= plan.run_tokens
        assert len(run.source_indexes) == plan.source_block_count(run.token_count)


def test_32_tokens_become_two_blocks_of_16_and_the_other_way_round() -> None:
    large, small = LAYOUT, dataclasses.replace(LAYOUT, block_tokens=16)
    (first, second) = bring_runs(plan_conversion((large,), small), 2, 3)
    assert (first.source_indexes, first.target_indexes, first.token_count) == (range(1), range(2), 32)
    assert (second.source_indexes, second.target_indexes, second.token_count) == (range(1, 2), range(2, 3), 16)
    (only,) = bring_runs(plan_conversion((small,), large), 3, 5)
    assert (only.source_indexes, only.target_indexes) == (range(2), range(1))
