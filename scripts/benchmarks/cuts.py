"""Every kind of service cut off the network under load: what goes wrong, and how soon it is over.

A mesh of two routers, tokenizers, prefill and decode workers, each process in a network namespace of its own on one
bridge, answers six requests at a time, whose right answers are known; each is streamed and compared, text and tokens.
In a round the link of one process is taken down under load, so that nothing arrives or leaves and nobody is told; after
four seconds, or six where nobody could be answered meanwhile, it is up again. When a request that began after that
has been answered, the load pauses; a second after the last request nothing may be leased or referenced in any tier.
`--rounds` of each kind, in random order. Lost is a request whose caller heard an error; one that has not ended after
20 s hung.

Needs Linux, root, `ip` and `unshare`.

Examples:
  scripts/bench cuts              five of each kind, some five minutes
  scripts/bench cuts --rounds 1
"""

import random
from collections.abc import Sequence

from forebay.errors import StartError
from forebay.testing.cut_mesh import can_cut
from forebay.testing.cut_rounds import ROLES, CutRound, run_cuts
from forebay.testing.steady_load import Verdict
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, percentile, report


def run(options: Options) -> None:
    """`rounds` cuts of each kind."""
    if not can_cut():
        raise StartError("networks cannot be made here: that needs Linux, root, `ip` and `unshare`")
    source = random.Random()
    kinds = [role for role in ROLES for _ in range(options.rounds)]
    source.shuffle(kinds)
    rounds = run_cuts(kinds, source)
    report("cuts", [figure for role in ROLES for figure in _figures(role, rounds)])


def _figures(role: str, all_rounds: Sequence[CutRound]) -> list[Figure]:
    rounds = [one for one in all_rounds if one.role == role]
    first_good_s = [one.first_good_s for one in rounds if one.first_good_s is not None]
    again_s, pauses_s = [one.good_again_s for one in rounds], [one.longest_pause_s for one in rounds]
    recomputed = sum(outcome.recomputed_tokens for one in rounds for outcome in one.outcomes)
    reasons = sum((one.reasons for one in rounds), start=type(rounds[0].reasons)())
    return [
        Figure(f"{role} cut: rounds", len(rounds), ""),
        Figure(f"{role} cut: requests", sum(len(one.outcomes) for one in rounds), ""),
        Figure(f"{role} cut: lost", sum(one.count(Verdict.FAILED) for one in rounds), "", "<= 0"),
        *(Figure(f"{role} cut: ended with {reason}", count, "") for reason, count in sorted(reasons.items())),
        Figure(f"{role} cut: wrong", sum(one.count(Verdict.WRONG) for one in rounds), "", "<= 0"),
        Figure(f"{role} cut: hung", sum(one.count(Verdict.HUNG) for one in rounds), "", "<= 0"),
        Figure(f"{role} cut: blocks leaked", sum(one.held_blocks for one in rounds), "", "<= 0"),
        Figure(f"{role} cut: tokens computed again, of answers that had begun", recomputed, ""),
        Figure(f"{role} cut: a good answer while it lasts, rounds", len(first_good_s), ""),
        *(
            Figure(f"{role} cut: a good answer, p{share}", percentile(first_good_s, share), "s")
            for share in (50, 99)
            if first_good_s
        ),
        *(Figure(f"{role} cut: good again after it, p{share}", percentile(again_s, share), "s") for share in (50, 99)),
        Figure(f"{role} cut: longest pause of a stream, p50", percentile(pauses_s, 50), "s"),
    ]
