"""What several contract tests need: a router in this process, before fake services on real servers."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from forebay.errors import NoWorkerError
from forebay.events.connection import Connection
from forebay.fleet.load import LoadView
from forebay.fleet.view import FleetView
from forebay.router.admission_gate import AdmissionGate
from forebay.router.advising import Advising
from forebay.router.draining import Draining
from forebay.router.fleet_links import FleetLinks
from forebay.router.generation import Generations
from forebay.router.health import Health
from forebay.router.planner import Planner
from forebay.router.servicer import RouterServicer
from forebay.routing.admission import AdmissionLimits
from forebay.routing.failover import FailoverLimits
from forebay.routing.prefix_index import PrefixIndex
from forebay.routing.silence import Silence
from forebay.rpc.channel import open_channel
from forebay.rpc.server import Server
from forebay.telemetry.tracing import use_provider
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.waiting import until
from forebay.v1 import router_pb2_grpc


@dataclass(slots=True)
class RouterUnderTest:
    """A router that sees the fleet's members; `stub` calls it over gRPC, `kill` ends its server and connections."""

    links: FleetLinks
    index: PrefixIndex
    generations: Generations
    gate: AdmissionGate
    health: Health
    stub: "router_pb2_grpc.RouterServiceAsyncStub"
    address: str
    kill: Callable[[], Awaitable[None]]


RouterFor = Callable[..., AbstractAsyncContextManager[RouterUnderTest]]


@asynccontextmanager
async def _router_for(
    fleet: ScriptedFleet,
    max_request_s: float = 3600.0,
    failover_s: float = 0.0,
    admission_limits: AdmissionLimits | None = None,
) -> AsyncIterator[RouterUnderTest]:
    connection = Connection()  # never opened: members come from the fleet directly
    links, index, loads = FleetLinks(), PrefixIndex(), LoadView(connection)
    links.update(fleet.members)
    planner = Planner(index, loads, lambda: links.snapshot, alone_tokens=0)
    gate = AdmissionGate(admission_limits or AdmissionLimits(), planner.room, planner.want_idle)
    planner.on_load(gate.update)
    health = Health(lambda: fleet.members, lambda: links.shut(health.shut), Silence(0.0))
    generations = Generations(links, planner, FailoverLimits(failover_s), gate, health)
    draining, advising = Draining(lambda: fleet.members, links), Advising(lambda: links.snapshot)
    servicer = RouterServicer(generations, FleetView(connection), loads, draining, advising)
    server = Server("127.0.0.1:0", max_call_s=max_request_s)
    server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, "forebay.v1.RouterService")
    address = await server.start()
    health.start()
    async with open_channel(address) as channel:
        if any(member.role.value == "tokenizer" for member in fleet.members.values()):
            await until(lambda: _knows_model(links))
        stub = router_pb2_grpc.RouterServiceStub(channel)
        yield RouterUnderTest(links, index, generations, gate, health, stub, address, lambda: server.stop(0))
    await server.stop(0)
    await health.close()
    await links.close()


def _knows_model(links: FleetLinks) -> bool:
    try:
        links.tokenizers.model()
    except NoWorkerError:
        return False
    return True


@pytest.fixture
def router_for() -> RouterFor:
    """`async with router_for(fleet) as router`: a router before this fleet; settings by their names."""
    return _router_for


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    """The spans that this process makes."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    use_provider(provider)
    yield exporter
    use_provider(None)


@pytest.fixture
def free_address() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"
