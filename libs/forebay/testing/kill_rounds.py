"""Rounds of: load, a fault in the middle of it, its end, a good answer, quiet, and what is still held then.

The fault is a kill, which ends with a new start, or a stop, in which the process is silent, and after which it goes on
as if nothing had been.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from forebay.client import AsyncClient
from forebay.testing.held_blocks import RELEASED_S, held_blocks
from forebay.testing.loaded_mesh import loaded_mesh
from forebay.testing.mesh import RunningMesh
from forebay.testing.mortal_mesh import MortalMesh
from forebay.testing.steady_load import OpenRequest, Outcome, SteadyLoad, Verdict
from forebay.testing.waiting import eventually, until

_READY_S: Final = 60.0
_GOOD_S: Final = 60.0
_ASKED_EVERY_S: Final = 0.1
_DEVICE_BLOCKS, _HOST_BLOCKS, _DISK_BLOCKS = 100, 48, 160
_BLOCK_BYTES: Final = 737_280 + 64  # of the default model


SMALL_TIERS: Final[dict[str, Any]] = {
    "device_bytes": _DEVICE_BLOCKS * _BLOCK_BYTES,
    "host_bytes": _HOST_BLOCKS * _BLOCK_BYTES,
    "disk_bytes": _DISK_BLOCKS * _BLOCK_BYTES,
    "extra_arguments": {"kvcache": ("--kept-after-uses", "1")},
}
"""Options for a mesh of which each tier is in use: DEVICE and HOST have less room than the answers' blocks."""

TWO_OF_EACH: Final[dict[str, Any]] = {
    "router_count": 2,
    "tokenizer_count": 2,
    "prefill_count": 2,
    "decode_count": 2,
}
"""Options for a mesh in which another can do what a killed one did, but for the KV-cache service."""


class Victim(StrEnum):
    """What is killed: the KV-cache service and a tokenizer at any time, others while they have work of their kind."""

    ROUTER = "router"
    TOKENIZER = "tokenizer"
    KVCACHE = "kvcache"
    PREFILL = "prefill"
    DECODE = "decode"


class Fault(StrEnum):
    """What happens to it."""

    KILLED = "killed"
    STOPPED = "stopped"


_MOST_DELAY_S: Final = {
    Victim.ROUTER: 0.6,
    Victim.TOKENIZER: 0.6,
    Victim.KVCACHE: 0.6,
    Victim.PREFILL: 0.04,
    Victim.DECODE: 0.15,
}
"""After the moment from which on the victim has work; of this a random part passes."""


@dataclass(frozen=True, slots=True)
class KillRound:
    """What became of one fault. Seconds count from its beginning.

    healthy_s: until the process that was started at once welcomed work, or the stopped one was in the fleet again.
    first_good_s: until a request that began after the fault had ended well. follow_up_s: the same of one that began
    when the process was healthy again.
    late_error_count: requests that began when it was healthy again, and failed all the same.
    cut_count: requests that were in the victim's hands at the kill; which tokenizer has one is not known: all count.
    resume_count: how often another router went on.
    held_blocks: leased and referenced in any tier, RELEASED_S after the last request had ended.
    """

    victim: Victim
    fault: Fault
    outcomes: tuple[Outcome, ...]
    healthy_s: float
    first_good_s: float
    follow_up_s: float
    late_error_count: int
    cut_count: int
    resume_count: int
    held_blocks: int


class KillRounds:
    """A mesh under load. `kill_rounds` makes one."""

    def __init__(
        self, mesh: RunningMesh, routers: Sequence[AsyncClient], load: SteadyLoad, source: random.Random
    ) -> None:
        self._mesh, self._routers, self._load, self._source = mesh, routers, load, source
        self._mortal = MortalMesh(mesh)

    async def run(self, victim: Victim, fault: Fault = Fault.KILLED) -> KillRound:
        """One round. Raises TimeoutError when the mesh does not recover."""
        first_outcome = len(self._load.outcomes)
        self._load.resume()
        worker_id, name = await self._victim_at_work(victim)
        await asyncio.sleep(self._source.uniform(0, _MOST_DELAY_S[victim]))  # a moment that nothing marks
        cut_count = self._at_work(victim).count(worker_id)
        killed_s = time.monotonic()
        async with asyncio.timeout(_READY_S):
            if fault is Fault.KILLED:
                self._mortal.start(name, self._mortal.kill(name))
                await self._mortal.until_ready(name)
            else:
                await self._freeze_until_missed(name)
        healthy_s = time.monotonic()
        await until(lambda: self._load.first_good_s(healthy_s), _GOOD_S)
        await self._load.pause()
        outcomes = self._load.outcomes[first_outcome:]
        first_good_s, follow_up_s = map(self._load.first_good_s, (killed_s, healthy_s))
        assert first_good_s is not None
        assert follow_up_s is not None  # waited for above, and good since the kill too
        return KillRound(
            victim=victim,
            fault=fault,
            outcomes=tuple(outcomes),
            healthy_s=healthy_s - killed_s,
            first_good_s=first_good_s - killed_s,
            follow_up_s=follow_up_s - killed_s,
            late_error_count=sum(one.began_s >= healthy_s and one.verdict is Verdict.FAILED for one in outcomes),
            cut_count=cut_count,
            resume_count=sum(one.resume_count for one in outcomes),
            held_blocks=await held_blocks(self._mesh.address_of("kvcache"), RELEASED_S),
        )

    async def _freeze_until_missed(self, name: str) -> None:
        """Stops a worker until the fleet takes it for gone and others answer; returns when it is in the fleet again."""
        # By address: plans may name a killed process, whose record has not run out, for the one that followed it there.
        stopped_s, address = time.monotonic(), self._mortal.address_of(name)
        self._mortal.freeze(name)
        try:
            await eventually(lambda: self._is_member(address, expected=False), _READY_S, _ASKED_EVERY_S)
            await until(lambda: self._load.first_good_s(stopped_s), _GOOD_S)
        finally:
            self._mortal.thaw(name)
        await eventually(lambda: self._is_member(address, expected=True), _READY_S, _ASKED_EVERY_S)

    async def _is_member(self, address: str, *, expected: bool) -> bool:
        """Whether each router says as much."""
        fleets = [await router.fleet() for router in self._routers]
        return all((address in {one.address for one in fleet.members}) is expected for fleet in fleets)

    async def _victim_at_work(self, victim: Victim) -> tuple[str, str]:
        """Worker id and name of a process to kill, at a moment when it has something to lose."""
        names: dict[str, str] = {}
        while True:
            await until(lambda: self._at_work(victim))
            worker_id = self._at_work(victim)[0]
            if worker_id in (Victim.KVCACHE, Victim.TOKENIZER):
                return worker_id, self._source.choice(self._mortal.names_of(victim))
            if victim is Victim.ROUTER:
                return worker_id, self._mortal.name_at(worker_id)
            if worker_id in names:
                return worker_id, names[worker_id]
            members = (await self._routers[0].fleet()).members
            names = {one.worker_id: self._mortal.name_at(one.address) for one in members if one.role == victim}

    def _at_work(self, victim: Victim) -> list[str]:
        """For each open request in whose hands it is, if that may be killed: a worker id, or a router's address."""
        workers = (_worker_of(request, victim) for request in self._load.requests.values())
        return [worker for worker in workers if worker is not None]


@asynccontextmanager
async def kill_rounds(mesh: RunningMesh, source: random.Random) -> AsyncIterator[KillRounds]:
    """Learns the right answers undisturbed, then keeps the mesh under load."""
    async with loaded_mesh(mesh, source) as (load, routers):
        yield KillRounds(mesh, routers, load, source)


def _worker_of(request: OpenRequest, victim: Victim) -> str | None:
    """Who of the victim's kind has this request in hand; a worker is computing its prompt, or its answer."""
    if request.plan is None:
        return None
    if victim in (Victim.KVCACHE, Victim.TOKENIZER):
        return victim
    if victim is Victim.ROUTER:
        return request.stream.target
    if victim is Victim.PREFILL:
        return None if request.token_ids else request.plan.prefill_worker_id or None
    return request.plan.decode_worker_id if request.token_ids else None
