"""How the services of a running mesh are: alive, healthy, how much memory, how busy."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from forebay.client import AsyncClient, WorkerLoad
from forebay.errors import ForebayError
from forebay.mesh.memory import ProcessMemory, process_memory
from forebay.mesh.readiness import health
from forebay.mesh.record import MeshRecord, ServiceRecord
from forebay.tasks import run


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service now. `health` is "serving", "not serving", "unreachable" or "gone"."""

    name: str
    pid: int
    address: str
    health: str
    memory: ProcessMemory
    load: WorkerLoad | None

    @property
    def is_healthy(self) -> bool:
        """Whether it runs and welcomes work."""
        return self.health == "serving"


def inspect_mesh(record: MeshRecord) -> list[ServiceStatus]:
    """The state of every service, in the order of the record."""
    return run(_inspect(record))


def running_request_count(record: MeshRecord) -> int:
    """Requests that workers compute or let wait, as the router was told; 0 if it does not answer."""
    if not any(service.role == "router" and service.process.is_running() for service in record.services):
        return 0
    loads = run(_loads(record.router_addresses))
    return sum(load.running_sequences + load.queued_sequences for load in loads.values())


async def _inspect(record: MeshRecord) -> list[ServiceStatus]:
    loads = asyncio.create_task(_loads(record.router_addresses))
    healths = await asyncio.gather(*(_health(service) for service in record.services))
    by_address = await loads
    return [
        ServiceStatus(
            name=service.name,
            pid=service.process.pid,
            address=service.address,
            health=state,
            memory=process_memory(service.process, record.node_id),
            load=by_address.get(service.address),
        )
        for service, state in zip(record.services, healths, strict=True)
    ]


async def _health(service: ServiceRecord) -> str:
    # Not asked when it is gone: another program may have its port by now.
    return await health(service.role, service.address) if service.process.is_running() else "gone"


async def _loads(router_addresses: Iterable[str]) -> dict[str, WorkerLoad]:
    with suppress(ForebayError):
        async with AsyncClient(router_addresses) as client:
            fleet = await client.fleet(timeout_s=2.0)
            return {member.address: member.load for member in fleet.members if member.load is not None}
    return {}
