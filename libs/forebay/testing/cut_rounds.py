"""Rounds of: load, one process cut off the network, a good answer all the same, the network healed, quiet.

`python -m forebay.testing.cut_rounds` runs one of each kind and prints them as JSON: it needs a network of its own,
which a process takes for good.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from forebay.client import AsyncClient
from forebay.testing.cut_mesh import CutMesh, cut_mesh, enter_own_network
from forebay.testing.held_blocks import RELEASED_S, held_blocks
from forebay.testing.kill_rounds import SMALL_TIERS, TWO_OF_EACH
from forebay.testing.loaded_mesh import loaded_mesh
from forebay.testing.steady_load import Outcome, SteadyLoad, Verdict
from forebay.testing.waiting import eventually, until

ROLES: Final = ("router", "tokenizer", "kvcache", "prefill", "decode", "nats")
HELD_S: Final = 4.0
"""So long a cut lasts at least; longer where nobody was answered meanwhile, up to _MOST_HELD_S."""
_MOST_HELD_S: Final = 6.0
"""A request is tried for ten seconds without a token (`--failover-s`), in which the way back has to have room."""
_BACK_S: Final = 60.0
_ASKED_EVERY_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class CutRound:
    """What became of one cut. Seconds count from its beginning, `good_again_s` from its end.

    first_good_s: until a request that began after the cut had ended well; None: none did before it was healed.
    longest_pause_s: of a stream that ended well. held_blocks: RELEASED_S after the last request had ended.
    """

    role: str
    outcomes: tuple[Outcome, ...]
    cut_s: float
    first_good_s: float | None
    good_again_s: float
    longest_pause_s: float
    held_blocks: int

    def count(self, verdict: Verdict) -> int:
        """Requests that ended so."""
        return sum(one.verdict is verdict for one in self.outcomes)

    @property
    def reasons(self) -> Counter[str]:
        """Of requests that were lost."""
        return Counter(one.reason or "" for one in self.outcomes if one.verdict is Verdict.FAILED)


class CutRounds:
    """A mesh under load. `cut_rounds` makes one."""

    def __init__(self, mesh: CutMesh, routers: Sequence[AsyncClient], load: SteadyLoad, source: random.Random) -> None:
        self._mesh, self._routers, self._load, self._source = mesh, routers, load, source
        self._member_count = sum(service.role != "nats" for service in mesh.record.services)

    async def run(self, role: str) -> CutRound:
        """One round. Raises TimeoutError when the mesh does not recover."""
        first = len(self._load.outcomes)
        self._load.resume()
        loaded_s = time.monotonic()
        await until(lambda: time.monotonic() - loaded_s >= 1.0 and self._load.first_good_s(loaded_s))
        await asyncio.sleep(self._source.uniform(0, 0.5))
        name = self._source.choice([one.name for one in self._mesh.record.services if one.role == role])
        cut_s = time.monotonic()
        self._mesh.cut(name)
        try:
            await until(lambda: self._is_enough(cut_s), _MOST_HELD_S + 1.0)
        finally:
            self._mesh.heal(name)
        healed_s = time.monotonic()
        first_good_s = self._load.first_good_s(cut_s)
        await until(lambda: self._load.first_good_s(healed_s), _BACK_S)
        good_again_s = self._load.first_good_s(healed_s)
        assert good_again_s is not None
        await self._load.pause()
        await eventually(self._is_whole, _BACK_S, _ASKED_EVERY_S)
        outcomes = tuple(self._load.outcomes[first:])
        good = [one for one in outcomes if one.verdict is Verdict.GOOD]
        return CutRound(
            role=role,
            outcomes=outcomes,
            cut_s=healed_s - cut_s,
            first_good_s=None if first_good_s is None or first_good_s > healed_s else first_good_s - cut_s,
            good_again_s=good_again_s - healed_s,
            longest_pause_s=max((one.longest_pause_s for one in good), default=0.0),
            held_blocks=await held_blocks(self._mesh.address_of("kvcache"), RELEASED_S),
        )

    def _is_enough(self, cut_s: float) -> bool:
        lasts_s = time.monotonic() - cut_s
        return lasts_s >= _MOST_HELD_S or (lasts_s >= HELD_S and self._load.first_good_s(cut_s) is not None)

    async def _is_whole(self) -> bool:
        """Whether each router has everybody in its fleet."""
        fleets = [await router.fleet() for router in self._routers]
        return all(len(fleet.members) == self._member_count and fleet.is_current for fleet in fleets)


@asynccontextmanager
async def cut_rounds(mesh: CutMesh, source: random.Random) -> AsyncIterator[CutRounds]:
    """Learns the right answers undisturbed, then keeps the mesh under load."""
    async with loaded_mesh(mesh, source) as (load, routers):
        yield CutRounds(mesh, routers, load, source)


def run_cuts(roles: Sequence[str], source: random.Random) -> list[CutRound]:
    """One round of each of these, in a network of its own: for a process that does nothing else."""

    async def rounds(mesh: CutMesh) -> list[CutRound]:
        async with cut_rounds(mesh, source) as cutting:
            return [await cutting.run(role) for role in roles]

    enter_own_network()
    with cut_mesh(**TWO_OF_EACH, **SMALL_TIERS) as mesh:
        return asyncio.run(rounds(mesh))


def _described(one: CutRound) -> dict[str, Any]:
    shown = {name: value for name, value in asdict(one).items() if name != "outcomes"}
    recomputed = sum(outcome.recomputed_tokens for outcome in one.outcomes)
    verdicts = {verdict.value: one.count(verdict) for verdict in Verdict}
    return {**shown, **verdicts, "recomputed_tokens": recomputed, "reasons": dict(one.reasons)}


if __name__ == "__main__":
    rounds = run_cuts(sys.argv[1:] or list(ROLES), random.Random())  # noqa: S311  # moments, not secrets
    sys.stdout.write(json.dumps([_described(one) for one in rounds], indent=1) + "\n")
