"""Workers drained and replaced one after the other under load: what goes wrong, and what callers notice.

A mesh of two routers, tokenizers, prefill and decode workers answers six requests at a time, whose right answers are
known; each is streamed and compared, text and tokens. In a round each worker is replaced in turn: another process of
its chip class starts, the old one drains by command when the fleet has the new one, and ends. Before each there are
three seconds of load; after each the load pauses, and a second after the last request nothing may be leased.

"moved" is a stream that another worker went on with. Tokens/s are what all callers heard: in the two seconds before a
replacement, while the new process starts, which takes cores, and in the second, or more, from the command to drain on.

Examples:
  scripts/bench drain              five rounds
  scripts/bench drain --rounds 2   a minute
"""

import asyncio
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Final

from forebay.testing.drain_rounds import DrainRound, drain_rounds
from forebay.testing.kill_rounds import TWO_OF_EACH
from forebay.testing.mesh import RunningMesh, running_mesh
from forebay.testing.steady_load import Verdict
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, percentile, report

_ROLES: Final = ("prefill", "decode")


def run(options: Options) -> None:
    """`rounds` replacements of each worker."""
    with running_mesh(**TWO_OF_EACH) as mesh:
        rounds = asyncio.run(_rounds(mesh, options.rounds))
    of_role = {role: [one for one in rounds if one.name.startswith(role)] for role in _ROLES}
    report("drain", [figure for role in _ROLES for figure in replacement_figures(role, of_role[role])])


async def _rounds(mesh: RunningMesh, count: int) -> list[DrainRound]:
    names = [f"{role}-{index}" for index in range(2) for role in _ROLES]
    async with drain_rounds(mesh, random.Random()) as draining:
        return [await draining.run(name) for _ in range(count) for name in names]


def replacement_figures(role: str, rounds: Sequence[DrainRound]) -> list[Figure]:
    """What went wrong in these, and the dip. role: what the figures are called by."""
    outcomes = [outcome for one in rounds for outcome in one.outcomes]
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    reasons = Counter(outcome.reason for outcome in outcomes if outcome.verdict is Verdict.FAILED)
    pauses = [outcome.longest_pause_s for one in rounds for outcome in one.moved]
    undisturbed = [one.longest_pause_s for one in outcomes if not one.failover_count]
    before, start, during = (
        statistics.fmean(values)
        for values in zip(
            *((one.before_tokens_per_s, one.start_tokens_per_s, one.during_tokens_per_s) for one in rounds), strict=True
        )
    )
    return [
        Figure(f"{role}: drains", len(rounds), ""),
        Figure(f"{role}: requests", len(outcomes), ""),
        Figure(f"{role}:   moved", len(pauses), ""),
        Figure(f"{role}: lost", verdicts[Verdict.FAILED], "", "<= 0"),
        *(Figure(f"{role}: ended with {reason}", count, "") for reason, count in sorted(reasons.items(), key=str)),
        Figure(f"{role}: wrong", verdicts[Verdict.WRONG], "", "<= 0"),
        Figure(f"{role}: hung", verdicts[Verdict.HUNG], "", "<= 0"),
        Figure(f"{role}: blocks leaked", sum(one.held_blocks for one in rounds), "", "<= 0"),
        Figure(
            f"{role}: prompt tokens computed again, of answers that had begun",
            sum(outcome.recomputed_tokens for outcome in outcomes),
            "",
            "<= 0",
        ),
        *(
            Figure(f"{role}: longest pause of {whose} stream, p{share}", percentile(values, share), "s")
            for whose, values in (("a moved", pauses), ("another", undisturbed))
            for share in (50, 99)
            if values
        ),
        Figure(f"{role}: from the command to its end, p50", percentile([one.drained_s for one in rounds], 50), "s"),
        Figure(f"{role}: replaced, p50", percentile([one.replaced_s for one in rounds], 50), "s"),
        Figure(f"{role}: tokens/s before", before, ""),
        Figure(f"{role}: tokens/s while the new one starts", start, ""),
        Figure(f"{role}: tokens/s in the drain", during, ""),
    ]
