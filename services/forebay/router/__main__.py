"""`python -m forebay.router`: builds a router from its settings and serves until SIGTERM."""

import asyncio
import secrets
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from importlib.metadata import version
from typing import Any, Final

from forebay.chips.fleet_file import read_fleet_file
from forebay.events.connection import connect
from forebay.events.kv_follower import KvFollower
from forebay.fleet.drain import drain
from forebay.fleet.load import LoadView
from forebay.fleet.member import Member, incarnation_now
from forebay.fleet.registrar import Registrar
from forebay.fleet.view import FleetView
from forebay.role import Role
from forebay.router.admission_gate import AdmissionGate
from forebay.router.advising import Advising
from forebay.router.config import RouterSettings
from forebay.router.draining import Draining
from forebay.router.fleet_links import FleetLinks
from forebay.router.generation import Generations
from forebay.router.health import Health
from forebay.router.kv_index import FollowedNodes, IndexFeed, KvCacheDumps
from forebay.router.planner import Planner
from forebay.router.servicer import RouterServicer
from forebay.routing.admission import AdmissionLimits
from forebay.routing.baseline import planning_by
from forebay.routing.failover import FailoverLimits
from forebay.routing.prefix_index import PrefixIndex
from forebay.routing.silence import Silence
from forebay.rpc.server import Server
from forebay.rpc.service import run
from forebay.tasks import end_task
from forebay.telemetry import spans
from forebay.v1 import router_pb2_grpc

SERVICE: Final = "forebay.v1.RouterService"
SPAN_NAMES: Final = {
    f"/{SERVICE}/Generate": spans.GENERATE,
    f"/{SERVICE}/GetFleet": None,
    f"/{SERVICE}/Cancel": None,
    f"/{SERVICE}/ExplainRequest": None,
    f"/{SERVICE}/DrainWorker": None,
    f"/{SERVICE}/AdviseRoles": None,
}
STOP_GRACE_S: Final = 0.2
"""What is over may still write its last message or its error."""


async def serve(settings: RouterSettings, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then lets running requests finish for `drain_s`."""
    link = read_fleet_file(settings.fleet_file).link
    async with AsyncExitStack() as closing:
        server = Server(settings.listen, SPAN_NAMES, begins_traces=True, max_call_s=settings.max_request_s)
        connection = await connect(settings.nats_url, "router")
        closing.push_async_callback(connection.close)
        fleet, loads, links = FleetView(connection), LoadView(connection), FleetLinks()
        index = PrefixIndex(settings.prefix_index_capacity)
        follower = KvFollower(connection, KvCacheDumps(links.kvcache), IndexFeed(index))
        nodes = FollowedNodes(follower)
        planning = planning_by(settings.routing_policy)
        planner = Planner(index, loads, lambda: links.snapshot, settings.alone_tokens, link, planning)

        def follow_fleet() -> None:
            links.update({one: member for one, member in fleet.members.items() if one not in health.silent})
            links.shut(health.shut)
            nodes.update(fleet.members)
            loads.keep(fleet.members)
            planner.keep(fleet.members)

        health = Health(lambda: fleet.members, follow_fleet, Silence(settings.silent_s))
        loads.on_report(health.heard)
        fleet.on_change(follow_fleet)
        for start, close in ((loads.start, loads.close), (follower.start, follower.close), (fleet.start, fleet.close)):
            await start()
            closing.push_async_callback(close)
        closing.push_async_callback(links.close)
        health.start()
        closing.push_async_callback(health.close)

        gate = AdmissionGate(
            AdmissionLimits(settings.reserved_share, settings.queue_length, settings.shed_after_s),
            planner.room,
            planner.want_idle,
        )
        closing.callback(gate.close)
        planner.on_load(gate.update)
        failover_limits = FailoverLimits(settings.failover_s, settings.most_lost_workers)
        generations = Generations(links, planner, failover_limits, gate, health)
        draining, advising = Draining(lambda: fleet.members, links), Advising(lambda: links.snapshot)
        servicer = RouterServicer(generations, fleet, loads, draining, advising)
        server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, SERVICE)
        address = await server.start()
        await _either(fleet.wait_loaded(), stop.wait())
        registrar = Registrar(connection, _member(settings, address))
        await registrar.start()
        closing.push_async_callback(registrar.close)
        await server.set_serving(True)

        await stop.wait()
        generations.running.drain()
        await drain(server, registrar, generations.running.wait_idle(), settings.drain_s)
        generations.running.end_all(settings.drain_s)
        await server.stop(STOP_GRACE_S)


async def _either(first: Coroutine[Any, Any, object], second: Coroutine[Any, Any, object]) -> None:
    """Returns when one of them does; the other is cancelled."""
    tasks = [asyncio.create_task(first), asyncio.create_task(second)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        await end_task(task)


def _member(settings: RouterSettings, address: str) -> Member:
    return Member(
        worker_id=f"router-{secrets.token_hex(4)}",
        role=Role.ROUTER,
        address=settings.advertise or address,
        node_id=settings.node_id,
        version=version("forebay"),
        incarnation=incarnation_now(),
    )


if __name__ == "__main__":
    run("router", RouterSettings, serve)
