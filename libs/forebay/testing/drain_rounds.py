"""Rounds of: load, a worker replaced or given the other role, the old one's end, quiet, and what is still held then."""

import dataclasses
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from forebay.mesh.local_mesh import Progress
from forebay.mesh.record import MeshRecord, read_record
from forebay.mesh.rolling_restart import restart_mesh, switch_role
from forebay.testing.held_blocks import RELEASED_S, held_blocks
from forebay.testing.loaded_mesh import loaded_mesh
from forebay.testing.mesh import RunningMesh
from forebay.testing.steady_load import Outcome, SteadyLoad, Verdict
from forebay.testing.waiting import until

BEFORE_S: Final = 3.0
"""Seconds of load before a drain, with which its own are compared."""
_STEP_S: Final = 60.0
_DRAINS: Final = "drains"  # how the progress says that the replacement is there


@dataclass(frozen=True, slots=True)
class DrainRound:
    """One service replaced under load.

    replaced_s: from the new process's start to the old one's end. drained_s: from the command to drain to that end.
    …_tokens_per_s: what all callers heard before the replacement, while the new process started, and from the command
    to drain to the old one's end, but not less than a second. held_blocks: RELEASED_S after the last request.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    replaced_s: float
    drained_s: float
    before_tokens_per_s: float
    start_tokens_per_s: float
    during_tokens_per_s: float
    held_blocks: int

    @property
    def moved(self) -> tuple[Outcome, ...]:
        """Requests that another worker went on with."""
        return tuple(one for one in self.outcomes if one.failover_count and one.verdict is Verdict.GOOD)


class DrainRounds:
    """A mesh under load. `drain_rounds` makes one."""

    def __init__(self, mesh: RunningMesh, load: SteadyLoad) -> None:
        self._mesh, self._load = mesh, load

    @property
    def record(self) -> MeshRecord:
        """What runs now."""
        record = read_record(self._mesh.state_dir)
        assert record is not None
        return record

    async def run(self, name: str) -> DrainRound:
        """Replaces one service. Raises StartError when it cannot be."""

        async def replace(note: Progress) -> None:
            await restart_mesh(self._mesh.state_dir, [name], note, _STEP_S)

        return await self._round(name, replace)

    async def switch(self, name: str, role: str) -> DrainRound:
        """Gives a worker the other role; the round has its new name. Raises StartError when that cannot be."""
        names = []

        async def switch(note: Progress) -> None:
            names.append(await switch_role(self._mesh.state_dir, name, role, note, _STEP_S))

        return dataclasses.replace(await self._round(name, switch), name=names[0])

    async def _round(self, name: str, replace: Callable[[Progress], Awaitable[None]]) -> DrainRound:
        first = len(self._load.outcomes)
        self._load.resume()
        loaded_s = time.monotonic()
        await until(lambda: time.monotonic() - loaded_s >= BEFORE_S and self._load.first_good_s(loaded_s))
        began_s = time.monotonic()
        drain_began: list[float] = []

        def note(line: str) -> None:
            if _DRAINS in line:
                drain_began.append(time.monotonic())

        await replace(note)
        ended_s = time.monotonic()
        draining_s = drain_began[0] if drain_began else began_s
        window_end_s = max(ended_s, draining_s + 1.0)
        await until(lambda: time.monotonic() >= window_end_s and self._load.first_good_s(ended_s))
        await self._load.pause()
        outcomes = tuple(self._load.outcomes[first:])
        return DrainRound(
            name=name,
            outcomes=outcomes,
            replaced_s=ended_s - began_s,
            drained_s=ended_s - draining_s,
            before_tokens_per_s=_rate(outcomes, began_s - BEFORE_S + 1.0, began_s),
            start_tokens_per_s=_rate(outcomes, began_s, draining_s),
            during_tokens_per_s=_rate(outcomes, draining_s, window_end_s),
            held_blocks=await held_blocks(self._mesh.address_of("kvcache"), RELEASED_S),
        )


@asynccontextmanager
async def drain_rounds(mesh: RunningMesh, source: random.Random) -> AsyncIterator[DrainRounds]:
    """Learns the right answers undisturbed, then keeps the mesh under load."""
    async with loaded_mesh(mesh, source) as (load, _):
        yield DrainRounds(mesh, load)


def _rate(outcomes: tuple[Outcome, ...], begins_s: float, ends_s: float) -> float:
    """Tokens per second that were heard from begins_s to ends_s."""
    heard = sum(count for one in outcomes for at_s, count in one.arrivals if begins_s <= at_s < ends_s)
    return heard / (ends_s - begins_s) if ends_s > begins_s else 0.0
