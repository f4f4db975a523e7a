"""When a sequence can leave its worker so that another goes on and computes nothing again. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sequence is, in tokens.

    answer_tokens: known ones of the answer, wherever they were generated. written_tokens: positions, from the first,
    whose KV lies in its blocks.
    """

    prompt_tokens: int
    answer_tokens: int
    written_tokens: int


def can_be_taken_over(progress: Progress) -> bool:
    """Whether all is written but the last token, which is of the answer: that is what a taker begins with."""
    return progress.answer_tokens > 0 and progress.written_tokens == progress.prompt_tokens + progress.answer_tokens - 1


def blocks_to_seal(progress: Progress, block_tokens: int) -> int:
    """Full blocks of a sequence that leaves."""
    return progress.written_tokens // block_tokens
