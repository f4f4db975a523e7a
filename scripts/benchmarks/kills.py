"""SIGKILL of every kind of service under load, and SIGSTOP of workers: what goes wrong, and how soon it is over.

A mesh of two routers, tokenizers, prefill and decode workers with little KV memory and a disk tier answers six requests
at a time, whose right answers are known; each is streamed and compared, text and tokens. In a round one process is
killed with -9: the KV-cache service or a tokenizer at any moment, a router while it has requests, a prefill worker
while it computes a prompt, a decode worker while it streams. It is started again at once. When a request that began
after that has been answered, the load pauses, and a second after the last request nothing may be leased or referenced
in any tier. `--rounds` kills of each kind, in random order, among them a quarter as many stops of a prefill and of a
decode worker: stopped until the fleet misses it and another has answered, then continued.

Times count from the fault. "a good answer" is to a request that began after it; "good again" to one that began
when the process was healthy again. Lost is a request whose caller heard an error, after none but right tokens.

Examples:
  scripts/bench kills              34 kills of each kind
  scripts/bench kills --rounds 5   two minutes
"""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from forebay.testing.kill_rounds import SMALL_TIERS, TWO_OF_EACH, Fault, KillRound, Victim, kill_rounds
from forebay.testing.mesh import RunningMesh, running_mesh
from forebay.testing.steady_load import Verdict
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, percentile, report


class _Kind(NamedTuple):
    victim: Victim
    fault: Fault

    def __str__(self) -> str:
        return f"{self.victim} {self.fault}"


_KINDS: Final = (
    *(_Kind(victim, Fault.KILLED) for victim in Victim),
    _Kind(Victim.PREFILL, Fault.STOPPED),
    _Kind(Victim.DECODE, Fault.STOPPED),
)


def run(options: Options) -> None:
    """`rounds` kills of each kind."""
    with running_mesh(**TWO_OF_EACH, **SMALL_TIERS) as mesh:
        rounds = asyncio.run(_rounds(mesh, options.rounds))
    report("kills", [figure for kind in _KINDS for figure in _figures(kind, rounds)])


async def _rounds(mesh: RunningMesh, count: int) -> list[KillRound]:
    source = random.Random()
    kinds = [kind for kind in _KINDS for _ in range(count if kind.fault is Fault.KILLED else -(-count // 4))]
    source.shuffle(kinds)
    async with kill_rounds(mesh, source) as killing:
        return [await killing.run(kind.victim, kind.fault) for kind in kinds]


def _figures(kind: _Kind, all_rounds: Sequence[KillRound]) -> list[Figure]:
    rounds = [one for one in all_rounds if (one.victim, one.fault) == kind]
    outcomes = [outcome for one in rounds for outcome in one.outcomes]
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    reasons = Counter(outcome.reason for outcome in outcomes if outcome.verdict is Verdict.FAILED)
    longest_s = max((one.ended_s - one.began_s for one in outcomes), default=0.0)
    times = {
        "healthy": [one.healthy_s for one in rounds],
        "a good answer": [one.first_good_s for one in rounds],
        "good again": [one.follow_up_s for one in rounds],
    }
    return [
        Figure(f"{kind}: rounds", len(rounds), ""),
        Figure(f"{kind}: requests", len(outcomes), ""),
        Figure(f"{kind}:   in its hands at that moment", sum(one.cut_count for one in rounds), ""),
        Figure(f"{kind}:   gone on with at another router", sum(one.resume_count for one in rounds), ""),
        Figure(
            f"{kind}:   prompt tokens computed again, of answers that had begun",
            sum(outcome.recomputed_tokens for outcome in outcomes),
            "",
            "<= 0" if kind == (Victim.DECODE, Fault.KILLED) else None,
        ),
        Figure(f"{kind}: ended well", verdicts[Verdict.GOOD], ""),
        Figure(f"{kind}: lost", verdicts[Verdict.FAILED], "", "<= 0"),
        *(Figure(f"{kind}: ended with {reason}", count, "") for reason, count in sorted(reasons.items(), key=str)),
        Figure(f"{kind}:   begun when it was healthy again", sum(one.late_error_count for one in rounds), ""),
        Figure(f"{kind}: wrong", verdicts[Verdict.WRONG], "", "<= 0"),
        Figure(f"{kind}: hung", verdicts[Verdict.HUNG], "", "<= 0"),
        Figure(f"{kind}: blocks leaked", sum(one.held_blocks for one in rounds), "", "<= 0"),
        Figure(f"{kind}: longest request", longest_s, "s"),
        *(
            Figure(f"{kind}: {name} after, p{share}", percentile(values, share), "s")
            for name, values in times.items()
            for share in (50, 99)
        ),
    ]
