"""Replaces the services of a mesh that serves, one after the other: as `rolling` plans it.

A worker's replacement is started beside it, with the same command at another address, or as a worker of the other role;
when the fleet has it, the old one drains and ends. Routers and tokenizers keep their addresses: one ends, the others
serve meanwhile.
The caller holds the state folder's lock.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Final

from forebay import ports
from forebay.client import AsyncClient, Member
from forebay.errors import ForebayError, StartError
from forebay.host.process_identity import ProcessIdentity
from forebay.mesh.local_mesh import DRAIN_GRACE_S, Progress, until_ended, until_ready
from forebay.mesh.process import spawn, stop
from forebay.mesh.record import MeshRecord, ServiceRecord, read_record, write_record
from forebay.mesh.rolling import Manner, as_role, check_switch, free_address, free_name, plan_rolling

_OFFSETS: Final = {"prefill": ports.PREFILL, "decode": ports.DECODE}
_SPARE_COUNT: Final = 10
_ASKED_EVERY_S: Final = 0.05


async def restart_mesh(state_dir: Path, wanted: Sequence[str], progress: Progress, timeout_s: float) -> MeshRecord:
    """Returns when all that is wanted (names or roles; none: all that can) has been replaced.

    Raises StartError when that cannot be, or a step takes longer than `timeout_s`: then the mesh serves on as it is.
    """
    record = read_record(state_dir)
    if record is None:
        raise StartError(f"no mesh runs in {state_dir}")
    gone = {one.name for one in record.services if not one.process.is_running()}
    plan = plan_rolling([(one.name, one.role) for one in record.services], wanted, gone)
    for name, reason in plan.stays:
        progress(f"  {name:<12} stays: {reason}")
    restart = _Restart(state_dir, record, progress, timeout_s)
    for name, manner in plan.steps:
        began_s = monotonic()
        await (restart.overlap(name) if manner is Manner.OVERLAP else restart.in_place(name))
        progress(f"  {name:<12} replaced after {monotonic() - began_s:.1f} s")
    return restart.record


async def switch_role(state_dir: Path, name: str, role: str, progress: Progress, timeout_s: float) -> str:
    """Returns the name of the worker that stands in this one's place, with the other role, when the old one has ended.

    Raises StartError when that cannot be, or a step takes longer than `timeout_s`: then the mesh serves on as it is.
    """
    record = read_record(state_dir)
    if record is None:
        raise StartError(f"no mesh runs in {state_dir}")
    check_switch([(one.name, one.role) for one in record.services], name, role)
    began_s = monotonic()
    restart = _Restart(state_dir, record, progress, timeout_s)
    new_name = await restart.switch(name, role)
    progress(f"  {name:<12} is {new_name} after {monotonic() - began_s:.1f} s")
    return new_name


class _Restart:
    """Keeps the record true at every moment, so that `down` stops what runs."""

    def __init__(self, state_dir: Path, record: MeshRecord, progress: Progress, timeout_s: float) -> None:
        self.record = record
        self._state_dir, self._progress, self._timeout_s = state_dir, progress, timeout_s
        self._logs = state_dir / "logs"

    async def overlap(self, name: str) -> None:
        """The new one serves before the old one drains."""
        old = self._service(name)
        new = await self._succeeded(old, old.role, f"{name}-next")
        for log, kept in ((f"{name}.log", f"{name}-before.log"), (f"{name}-next.log", f"{name}.log")):
            with suppress(FileNotFoundError):
                (self._logs / log).replace(self._logs / kept)
        renamed = replace(new, name=name)
        self._write([renamed if one.name == new.name else one for one in self.record.services])

    async def switch(self, name: str, role: str) -> str:
        """The same, but the new one has another role and keeps its name, which is returned."""
        old = self._service(name)
        new = await self._succeeded(old, role, free_name(role, {one.name for one in self.record.services}))
        change = {"prefill": -1, "decode": 1} if role == "decode" else {"prefill": 1, "decode": -1}
        self.record = replace(
            self.record,
            prefill_count=self.record.prefill_count + change["prefill"],
            decode_count=self.record.decode_count + change["decode"],
        )
        self._write(self.record.services)
        return new.name

    async def _succeeded(self, old: ServiceRecord, role: str, name: str) -> ServiceRecord:
        """A worker of this role and name, in the place of the old one, which has ended."""
        address = self._address_of(role, old.name if role == old.role else name)
        command = as_role([address if part == old.address else part for part in _command_of(old.process)], role)
        process = spawn(command, self._logs / f"{name}.log", os.environ)
        new = ServiceRecord(name, role, address, process)
        self._write((*self.record.services, new))
        try:
            await self._until_member(new)
            self._progress(f"  {old.name:<12} drains; its replacement serves at {address}")
            await self._drain(old)
        except BaseException:
            if old.process.is_running():
                stop([new.process], DRAIN_GRACE_S)
                self._write([one for one in self.record.services if one.name != new.name])
            raise
        stop([old.process], grace_s=0)  # it has ended: only its entry in the process table is removed
        others = [one for one in self.record.services if one.name != new.name]
        self._write([new if one.name == old.name else one for one in others])
        return new

    async def in_place(self, name: str) -> None:
        """The old one drains and ends, then another begins at its address."""
        old = self._service(name)
        command = _command_of(old.process)
        await asyncio.to_thread(stop, [old.process], DRAIN_GRACE_S)
        with suppress(FileNotFoundError):
            (self._logs / f"{name}.log").replace(self._logs / f"{name}-before.log")
        new = replace(old, process=spawn(command, self._logs / f"{name}.log", os.environ))
        self._write([new if one.name == name else one for one in self.record.services])
        await self._until_member(new)

    async def _drain(self, old: ServiceRecord) -> None:
        member = await self._member_at(old.address)
        if member is None:
            raise StartError(f"{old.name} is not in the fleet; {_MEND}")
        try:
            async with asyncio.timeout(self._timeout_s), AsyncClient(self.record.router_addresses) as client:
                await client.drain(member.worker_id)
                await until_ended(old.process)
        except TimeoutError:
            raise StartError(f"{old.name} still drains after {self._timeout_s:g} s") from None
        except ForebayError as error:
            raise StartError(f"{old.name} cannot be drained: {error.message}") from error

    async def _until_member(self, new: ServiceRecord) -> None:
        """Healthy, and every router has it in its fleet."""
        await until_ready((new,), self._logs, self._progress, self._timeout_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                while await self._member_at(new.address) is None:  # noqa: ASYNC110  # known to other processes only
                    await asyncio.sleep(_ASKED_EVERY_S)
        except TimeoutError:
            raise StartError(f"{new.name} is not in the fleet after {self._timeout_s:g} s") from None

    async def _member_at(self, address: str) -> Member | None:
        """Who takes work at an address, if all routers agree on it."""
        found: list[Member | None] = []
        for router in self.record.router_addresses:
            try:
                async with AsyncClient(router) as client:
                    members = (await client.fleet()).members
            except ForebayError:
                return None
            taking = (one for one in members if one.address == address and not one.is_draining)
            found.append(next(taking, None))
        ids = {one.worker_id for one in found if one is not None}
        return found[0] if len(ids) == 1 and None not in found else None

    def _address_of(self, role: str, name: str) -> str:
        own = f"{ports.HOST}:{self.record.port_base + _OFFSETS[role] + int(name.rpartition('-')[2])}"
        first = self.record.port_base + ports.REPLACEMENTS
        spare = [f"{ports.HOST}:{first + index}" for index in range(_SPARE_COUNT)]
        return free_address(own, spare, {one.address for one in self.record.services})

    def _service(self, name: str) -> ServiceRecord:
        return next(one for one in self.record.services if one.name == name)

    def _write(self, services: Sequence[ServiceRecord]) -> None:
        self.record = replace(self.record, services=tuple(services))
        write_record(self._state_dir, self.record)


_MEND: Final = "`forebay up` starts again what is gone"


def _command_of(process: ProcessIdentity) -> tuple[str, ...]:
    """As it was started: same chip class, same settings. Raises StartError when the process is gone."""
    try:
        words = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    except FileNotFoundError:
        words = []
    if not words or not process.is_running():
        raise StartError(f"process {process.pid} is gone; {_MEND}")
    return tuple(words)
