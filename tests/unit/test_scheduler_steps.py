"""What single steps of the scheduler do, case by case."""

import pytest

from forebay.engine.scheduler import (
    BlocksFilled,
    Failed,
    Finished,
    FinishReason,
    Limits,
    NeedsBlocks,
    NewToken,
    Scheduler,
)
from forebay.engine.types import Sampled, SamplingParams, Sequence, Slice
from forebay.errors import DuplicateRequestError, NumericFailureError

BLOCK_TOKENS = 4


def limits(**changes: int) -> Limits:
    defaults = {"block_tokens": BLOCK_TOKENS, "context_tokens": 1000, "chunk_tokens": 8, "lookahead_blocks": 2}
    return Limits(**(defaults | changes))


def sequence(
    sequence_id: str = "a",
    prompt: int = 5,
    blocks: int | None = None,
    output: int = 0,
    max_tokens: int = 100,
    **more: int,
) -> Sequence:
    return Sequence(
        sequence_id=sequence_id,
        prompt_token_ids=list(range(prompt)),
        sampling=SamplingParams(max_tokens=max_tokens, seed=0, stop_token_ids=frozenset({99})),
        block_table=list(range(50 if blocks is None else blocks)),
        output_token_ids=list(range(output)),
        **more,
    )


def sampled(slices: list[Slice], token_id: int = 7) -> list[Sampled]:
    return [
        Sampled(part.sequence.sequence_id, token_id)
        for part in slices
        if part.sequence.computed_tokens + part.token_count == part.sequence.token_count
    ]


def shares(slices: list[Slice]) -> dict[str, int]:
    return {part.sequence.sequence_id: part.token_count for part in slices}


def test_a_prompt_is_computed_in_chunks_and_sampled_once() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(sequence(prompt=20))
    tokens = []
    for expected in (8, 8, 4, 1):
        slices = scheduler.plan_step()
        assert shares(slices) == {"a": expected}
        tokens += [one for one in scheduler.complete(slices, sampled(slices)) if isinstance(one, NewToken)]
    assert len(tokens) == 2  # the chunk that ended the prompt, and one decode step


def test_decode_goes_on_beside_a_long_prompt_and_prompts_share_a_step_in_order() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(sequence("decoding", prompt=5, output=1, computed_tokens=5))
    scheduler.add(sequence("first", prompt=10))
    scheduler.add(sequence("second", prompt=10))
    assert shares(scheduler.plan_step()) == {"decoding": 1, "first": 8}
    slices = scheduler.plan_step()
    scheduler.complete(slices, sampled(slices))
    assert shares(scheduler.plan_step()) == {"decoding": 1, "first": 2, "second": 6}


def test_a_less_urgent_prompt_is_overtaken_but_not_for_ever() -> None:
    scheduler = Scheduler(limits(max_sequences=1))
    scheduler.add(sequence("patient", prompt=8, max_tokens=1), priority=1)
    order = []
    for number in range(100):
        scheduler.add(sequence(f"urgent-{number}", prompt=8, max_tokens=1))
        slices = scheduler.plan_step()
        order += shares(slices)
        scheduler.complete(slices, sampled(slices))
    assert order.index("patient") == 63


def test_a_more_urgent_sequence_pauses_the_last_of_the_least_urgent_and_it_goes_on_where_it_was() -> None:
    scheduler = Scheduler(limits(max_sequences=2, chunk_tokens=32))
    scheduler.add(sequence("first", prompt=3), priority=1)
    scheduler.add(sequence("second", prompt=3), priority=1)
    slices = scheduler.plan_step()
    scheduler.complete(slices, sampled(slices))
    scheduler.add(sequence("urgent", prompt=20, max_tokens=2))
    for urgent_tokens in (20, 1):
        slices = scheduler.plan_step()
        assert shares(slices) == {"urgent": urgent_tokens, "first": 1}
        scheduler.complete(slices, sampled(slices))
    slices = scheduler.plan_step()
    assert shares(slices) == {"first": 1, "second": 1}
    second = next(one.sequence for one in slices if one.sequence.sequence_id == "second")
    assert (second.computed_tokens, second.output_token_ids, len(second.block_table)) == (3, [7], 50)


def test_an_equal_pauses_nobody() -> None:
    scheduler = Scheduler(limits(max_sequences=1))
    scheduler.add(sequence("first", prompt=3), priority=1)
    scheduler.add(sequence("second", prompt=3), priority=1)
    for _ in range(5):
        slices = scheduler.plan_step()
        assert set(shares(slices)) == {"first"}
        scheduler.complete(slices, sampled(slices))


def test_a_sequence_without_blocks_holds_no_place_in_the_batch() -> None:
    scheduler = Scheduler(limits(max_sequences=1, chunk_tokens=16))
    scheduler.add(sequence("poor", prompt=10, blocks=0))
    scheduler.add(sequence("rich", prompt=10))
    slices = scheduler.plan_step()
    assert shares(slices) == {"rich": 10}
    scheduler.complete(slices, sampled(slices))
    scheduler.grant_blocks("poor", [1, 2, 3, 4, 5])
    assert shares(scheduler.plan_step()) == {"poor": 10}


def test_a_step_may_be_given_fewer_prompt_tokens_but_not_more() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(sequence(prompt=20))
    assert shares(scheduler.plan_step(chunk_tokens=3)) == {"a": 3}
    assert shares(scheduler.plan_step(chunk_tokens=99)) == {"a": 8}


def test_a_step_is_as_urgent_as_its_most_urgent_sequence() -> None:
    scheduler = Scheduler(limits(chunk_tokens=32))
    scheduler.add(sequence("a"), priority=2)
    assert scheduler.most_urgent(scheduler.plan_step()) == 2
    scheduler.add(sequence("b"), priority=1)
    assert scheduler.most_urgent(scheduler.plan_step()) == 1
    assert not scheduler.is_decoding
    slices = scheduler.plan_step()
    scheduler.complete(slices, sampled(slices))
    assert scheduler.is_decoding


def test_a_sequence_waits_at_the_end_of_its_table() -> None:
    scheduler = Scheduler(limits())
    asked = scheduler.add(sequence(prompt=10, blocks=1))
    assert asked == [NeedsBlocks("a", 4)]  # 10 prompt tokens and two blocks ahead are 5 blocks
    slices = scheduler.plan_step()
    assert shares(slices) == {"a": 4}
    assert scheduler.complete(slices, []) == [BlocksFilled("a", 0, 1)]
    assert scheduler.plan_step() == []
    assert scheduler.grant_blocks("a", [1, 2, 3, 4]) == []
    assert shares(scheduler.plan_step()) == {"a": 6}


def test_blocks_are_asked_for_before_they_run_out_and_only_once() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(sequence(prompt=7, blocks=4))
    asked = []
    for _ in range(12):
        slices = scheduler.plan_step()
        asked += [one for one in scheduler.complete(slices, sampled(slices)) if isinstance(one, NeedsBlocks)]
    assert asked == [NeedsBlocks("a", 2)]


def test_a_table_is_not_lengthened_beyond_what_can_be_written() -> None:
    short = sequence(prompt=4, max_tokens=1)
    assert limits().first_table_blocks(short) == 1  # the only output token is never computed
    assert limits(context_tokens=9).first_table_blocks(sequence(prompt=8)) == 2
    assert limits().first_table_blocks(sequence(prompt=8)) == 4
    scheduler = Scheduler(limits())
    assert scheduler.add(sequence(prompt=4, blocks=1, max_tokens=1)) == []


def test_a_block_is_sealable_only_when_its_last_token_is_computed() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(sequence(prompt=3))
    slices = scheduler.plan_step()
    assert BlocksFilled not in map(type, scheduler.complete(slices, sampled(slices)))  # 4 tokens known, 3 computed
    slices = scheduler.plan_step()
    assert BlocksFilled("a", 0, 1) in scheduler.complete(slices, sampled(slices))


def test_blocks_sealed_by_others_are_not_told_again() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(sequence(prompt=10, computed_tokens=8))
    slices = scheduler.plan_step()
    assert BlocksFilled not in map(type, scheduler.complete(slices, sampled(slices)))
    for _ in range(2):
        slices = scheduler.plan_step()
        outcomes = scheduler.complete(slices, sampled(slices))
    assert BlocksFilled("a", 2, 1) in outcomes


@pytest.mark.parametrize(
    ("changes", "token_id", "reason"),
    [
        ({"max_tokens": 50}, 99, FinishReason.STOP),
        ({"max_tokens": 1}, 7, FinishReason.LENGTH),
        ({"max_tokens": 1}, 99, FinishReason.STOP),
        ({"max_tokens": 3, "output": 2}, 7, FinishReason.LENGTH),
        ({"prompt": 19}, 7, FinishReason.LENGTH),
    ],
)
def test_a_generation_ends(changes: dict[str, int], token_id: int, reason: FinishReason) -> None:
    scheduler = Scheduler(limits(context_tokens=20, chunk_tokens=32))
    scheduler.add(sequence(**changes))
    slices = scheduler.plan_step()
    outcomes = scheduler.complete(slices, sampled(slices, token_id))
    assert outcomes[0] == NewToken("a", token_id, None)
    assert outcomes[-1] == Finished("a", reason)
    assert len(scheduler) == 0
    assert scheduler.plan_step() == []


def test_one_bad_sequence_does_not_disturb_the_others() -> None:
    scheduler = Scheduler(limits())
    for name in "ab":
        scheduler.add(sequence(name, prompt=4))
    slices = scheduler.plan_step()
    error = NumericFailureError("not a number")
    outcomes = scheduler.complete(slices, [Sampled("a", None, error=error), Sampled("b", 3)])
    assert outcomes == [Failed("a", error), NewToken("b", 3, None), BlocksFilled("b", 0, 1)]
    assert scheduler.sequence_ids == ["b"]


def test_a_missing_token_fails_its_sequence() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(sequence(prompt=4))
    outcomes = scheduler.complete(scheduler.plan_step(), [])
    assert [type(one) for one in outcomes] == [Failed]
    assert "a" not in scheduler


def test_a_broken_step_fails_what_was_in_it() -> None:
    scheduler = Scheduler(limits(max_sequences=1))
    scheduler.add(sequence("a"))
    scheduler.add(sequence("b"))
    slices = scheduler.plan_step()
    error = NumericFailureError("broken")
    assert scheduler.fail(slices, error) == [Failed("a", error)]
    assert shares(scheduler.plan_step()) == {"b": 5}


def test_what_cannot_be_added_is_refused() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(sequence())
    with pytest.raises(DuplicateRequestError):
        scheduler.add(sequence())
    with pytest.raises(ValueError, match="not computed yet"):
        scheduler.add(sequence("b", prompt=3, computed_tokens=3))


def test_a_new_sequence_with_the_id_of_a_cancelled_one_gets_none_of_its_tokens() -> None:
    scheduler = Scheduler(limits())
    scheduler.add(sequence(prompt=4))
    slices = scheduler.plan_step()
    assert scheduler.cancel("a")
    assert not scheduler.cancel("a")
    scheduler.add(sequence(prompt=6))
    scheduler.plan_step()
    assert scheduler.complete(slices, sampled(slices)) == []
    assert scheduler.grant_blocks("gone", [1]) == []
