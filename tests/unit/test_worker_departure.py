"""When a sequence can leave: exactly when its taker has nothing to compute again but the last token."""

from hypothesis import given
from hypothesis import strategies as st

from forebay.worker.departure import Progress, blocks_to_seal, can_be_taken_over

BLOCK = 4


@given(st.integers(1, 40), st.integers(0, 1), st.lists(st.integers(1, 12), max_size=40))
def test_it_leaves_between_any_two_steps_of_its_answer_and_never_before(
    prompt: int, emitted: int, chunks: list[int]
) -> None:
    """Chunks of the prompt, then token by token, as an engine steps."""
    answer, written = emitted, 0
    for chunk in chunks:
        known = prompt + answer
        written += min(chunk, known - written)
        if written == known:
            answer += 1
        progress = Progress(prompt, answer, written)
        has_computed_prompt = answer > 0 and written >= prompt and written == prompt + answer - 1
        assert can_be_taken_over(progress) == has_computed_prompt
        assert blocks_to_seal(progress, BLOCK) * BLOCK <= written < (blocks_to_seal(progress, BLOCK) + 1) * BLOCK
        if can_be_taken_over(progress):
            # The taker is told all tokens, and begins behind all but the last.
            assert blocks_to_seal(progress, BLOCK) == (prompt + answer - 1) // BLOCK


def test_without_a_token_of_the_answer_nobody_can_take_it_over() -> None:
    assert not can_be_taken_over(Progress(prompt_tokens=8, answer_tokens=0, written_tokens=7))


def test_what_is_computed_again_after_a_loss_is_waited_for() -> None:
    assert not can_be_taken_over(Progress(prompt_tokens=8, answer_tokens=5, written_tokens=9))
