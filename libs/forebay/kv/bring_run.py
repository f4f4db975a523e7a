"""Which blocks of another node become which blocks of this one, where sizes of blocks differ. Pure.

Knows counts and indexes: not what blocks hold, which of them are here already, or how they come.
"""

from dataclasses import dataclass

from forebay.kv.conversion import ConversionPlan


@dataclass(frozen=True, slots=True)
class BringRun:
    """The least that is converted by itself: neighbouring blocks of both sides that hold the same `token_count` tokens.

    source_indexes, target_indexes: counted in the sequence. The target's blocks are filled to their last token; of the
    source's last block a part may not be wanted.
    """

    source_indexes: range
    target_indexes: range
    token_count: int


def bring_runs(plan: ConversionPlan, source_count: int, target_count: int) -> list[BringRun]:
    """The runs that fill as many of the first `target_count` blocks as `source_count` blocks of the source can.

    A block that would be filled in part is left out: only full blocks are cache.
    """
    source_tokens, target_tokens = plan.sources[0].block_tokens, plan.target.block_tokens
    filled_count = min(target_count, source_count * source_tokens // target_tokens)
    end_tokens = filled_count * target_tokens
    return [
        _run(plan, start, min(plan.run_tokens, end_tokens - start)) for start in range(0, end_tokens, plan.run_tokens)
    ]


def _run(plan: ConversionPlan, start_tokens: int, token_count: int) -> BringRun:
    first_source = start_tokens // plan.sources[0].block_tokens
    first_target = start_tokens // plan.target.block_tokens
    return BringRun(
        range(first_source, first_source + plan.source_block_count(token_count)),
        range(first_target, first_target + plan.target_block_count(token_count)),
        token_count,
    )
