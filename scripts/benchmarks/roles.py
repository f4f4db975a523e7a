"""Workers that change roles one after the other under load: what goes wrong, and what callers notice.

A mesh of two routers, tokenizers, prefill and decode workers answers six requests at a time, whose right answers are
known; each is streamed and compared, text and tokens. In a round a prefill worker becomes a decode worker, and then one
that prefills again: a process of the new role starts, the old one drains by command when the fleet has it, and ends.
Before each there are three seconds of load; after each the load pauses, and a second after the last request nothing may
be leased. The dip is told as in `bench drain`.

Examples:
  scripts/bench roles              five rounds
  scripts/bench roles --rounds 2   a minute
"""

import asyncio
import random

from forebay.testing.drain_rounds import DrainRound, drain_rounds
from forebay.testing.kill_rounds import TWO_OF_EACH
from forebay.testing.mesh import RunningMesh, running_mesh
from scripts.benchmarks.drain import replacement_figures
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import report

_KINDS = ("prefill to decode", "decode to prefill")


def run(options: Options) -> None:
    """`rounds` switches each way."""
    with running_mesh(**TWO_OF_EACH) as mesh:
        rounds = asyncio.run(_rounds(mesh, options.rounds))
    report("roles", [figure for kind in _KINDS for figure in replacement_figures(kind, rounds[kind])])


async def _rounds(mesh: RunningMesh, count: int) -> dict[str, list[DrainRound]]:
    to_decode, to_prefill = [], []
    async with drain_rounds(mesh, random.Random()) as draining:
        for _ in range(count):
            to_decode.append(await draining.switch("prefill-1", "decode"))
            to_prefill.append(await draining.switch(to_decode[-1].name, "prefill"))
    return dict(zip(_KINDS, (to_decode, to_prefill), strict=True))
