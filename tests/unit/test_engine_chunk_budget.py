"""Prompt chunks are as large as the step-time SLO lets them be, and never so small that prompts starve."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.engine.chunk_budget import LEAST_ALONE_TOKENS, LONGEST_STEP_S, ChunkBudget

Seconds = st.floats(0, 1e4, allow_nan=False)


def budget(step_slo_s: float = 0.05) -> ChunkBudget:
    return ChunkBudget(least_tokens=32, most_tokens=256, step_slo_s=step_slo_s)


def taught(token_s: float, decode_s: float = 0.01) -> ChunkBudget:
    one = budget()
    one.learn(0, True, decode_s)
    one.learn(100, True, decode_s + 100 * token_s)
    return one


def test_where_nobody_generates_chunks_are_whole_while_steps_are_short() -> None:
    assert budget().chunk_tokens(is_decoding=False) == 256
    assert taught(token_s=LONGEST_STEP_S / 300).chunk_tokens(is_decoding=False) == 256
    assert taught(token_s=LONGEST_STEP_S / 200).chunk_tokens(is_decoding=False) in (199, 200)
    assert taught(token_s=1.0).chunk_tokens(is_decoding=False) == LEAST_ALONE_TOKENS
    assert ChunkBudget(32, 64, 0.05).chunk_tokens(is_decoding=False) == 64


def test_before_anything_is_known_generating_sequences_are_spared() -> None:
    assert budget().chunk_tokens(is_decoding=True) == 32
    assert budget().chunk_tokens(is_decoding=False, others_step_slo_s=0.05) == 32


def test_a_prompt_gets_what_decode_leaves_of_the_slo() -> None:
    assert taught(token_s=0.0004).chunk_tokens(is_decoding=True) in (99, 100)  # 40 of 50 ms
    assert taught(token_s=0.00001).chunk_tokens(is_decoding=True) == 256
    assert taught(token_s=0.01).chunk_tokens(is_decoding=True) == 32
    assert taught(token_s=0.0001, decode_s=0.2).chunk_tokens(is_decoding=True) == 32


def test_another_worker_s_slo_bounds_a_chunk_too() -> None:
    one = taught(token_s=0.001)
    assert one.chunk_tokens(is_decoding=False, others_step_slo_s=0.1005) == 100
    assert one.chunk_tokens(is_decoding=True, others_step_slo_s=10.0) in (39, 40)
    one = taught(token_s=0.0002)
    assert one.chunk_tokens(is_decoding=True, others_step_slo_s=0.0201) == 50


def test_a_chunk_is_never_above_a_limit_that_is_below_a_block() -> None:
    assert ChunkBudget(least_tokens=32, most_tokens=8, step_slo_s=0.05).chunk_tokens(is_decoding=True) == 8


def test_small_chunks_teach_nothing_of_large_ones() -> None:
    one = taught(token_s=0.0004)
    for _ in range(50):
        one.learn(3, True, 0.04)
    assert one.chunk_tokens(is_decoding=True) in (99, 100)


def test_one_stall_changes_little_and_is_forgotten() -> None:
    one = taught(token_s=0.0004)
    one.learn(100, True, 30.0)
    assert one.chunk_tokens(is_decoding=True) >= 100 / 1.8
    one.learn(0, True, 30.0)
    for _ in range(20):
        one.learn(0, True, 0.01)
        one.learn(64, True, 0.01 + 64 * 0.0004)
    assert 95 <= one.chunk_tokens(is_decoding=True) <= 100


def test_a_decode_time_that_has_become_too_long_is_unlearned_beside_prompts_alone() -> None:
    one = taught(token_s=0.0002, decode_s=1.0)
    assert one.chunk_tokens(is_decoding=True) == 32
    for _ in range(100):
        one.learn(one.chunk_tokens(is_decoding=True), True, 0.01 + 32 * 0.0002)
    assert one.chunk_tokens(is_decoding=True) > 32


@given(
    decode_s=st.floats(0.0005, 0.2),
    token_s=st.floats(1e-5, 1e-2),
    before=st.lists(st.tuples(st.integers(0, 256), st.booleans(), Seconds), max_size=10),
)
def test_steps_settle_within_the_slo_where_a_block_fits(
    decode_s: float, token_s: float, before: list[tuple[int, bool, float]]
) -> None:
    """Whatever was seen before, on a machine where a step takes decode_s + tokens * token_s."""
    one = budget()
    for prompt_tokens, is_decoding, step_s in before:
        one.learn(prompt_tokens, is_decoding, step_s)
    for _ in range(150):
        one.learn(0, True, decode_s)
        tokens = one.chunk_tokens(is_decoding=True)
        one.learn(tokens, True, decode_s + tokens * token_s)
    tokens = one.chunk_tokens(is_decoding=True)
    assert tokens == 32 or decode_s + tokens * token_s <= 0.05 * 1.02


@given(
    steps=st.lists(st.tuples(st.integers(0, 256), st.booleans(), Seconds), max_size=30),
    is_decoding=st.booleans(),
    others_step_slo_s=st.none() | st.floats(1e-6, 100),
)
def test_a_chunk_is_at_least_a_block_and_at_most_the_limit(
    steps: list[tuple[int, bool, float]], is_decoding: bool, others_step_slo_s: float | None
) -> None:
    one = budget()
    for prompt_tokens, was_decoding, step_s in steps:
        one.learn(prompt_tokens, was_decoding, step_s)
    assert 32 <= one.chunk_tokens(is_decoding, others_step_slo_s) <= 256
