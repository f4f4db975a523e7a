"""The whole router as its process runs it: members, load and KV events over a real nats-server, NATS dying under it."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.errors import DrainingError, NoWorkerError
from forebay.events.connection import connect
from forebay.events.kv_publisher import KvEventPublisher
from forebay.fleet.load import LoadPublisher
from forebay.fleet.member import Load
from forebay.fleet.messages import member_from_proto
from forebay.fleet.registrar import Registrar
from forebay.kv.hashing import block_hashes, root_hash
from forebay.role import Role
from forebay.router.__main__ import serve
from forebay.router.config import RouterSettings
from forebay.rpc.channel import open_channel
from forebay.rpc.status import translated
from forebay.testing.nats_server import NatsServer
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import DIGEST, LAYOUT
from forebay.testing.waiting import eventually, until
from forebay.v1 import (
    common_pb2,
    events_pb2,
    kvcache_pb2,
    kvcache_pb2_grpc,
    router_pb2,
    router_pb2_grpc,
)

PROMPT = list(range(40, 53))  # three full blocks of 4 and one token
HASHES = block_hashes(root_hash(DIGEST, "", ""), PROMPT, LAYOUT.block_tokens)


@pytest.fixture
def nats_server(tmp_path):  # type: ignore[no-untyped-def]
    server = NatsServer(tmp_path)
    yield server
    server.stop()


class FakeKvCache(kvcache_pb2_grpc.KvCacheServiceServicer):
    """Has an empty index."""

    async def DumpIndex(self, request, context):  # type: ignore[no-untyped-def]
        yield kvcache_pb2.DumpIndexResponse(incarnation=5, last_event_number=0)


class Fleet(ScriptedFleet):
    """Scripted services that are members by NATS."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.registrars: dict[str, Registrar] = {}

    async def __aenter__(self):  # type: ignore[no-untyped-def]
        await super().__aenter__()
        await self.add(Role.KVCACHE, "kvcache-1", FakeKvCache())
        self.connection = await connect(self.url, "fleet")
        for worker_id, member in self.members.items():
            self.registrars[worker_id] = Registrar(self.connection, member)
            await self.registrars[worker_id].start()
        return self

    async def __aexit__(self, *error: object) -> None:
        for registrar in self.registrars.values():
            await registrar.close()
        await self.connection.close()
        await super().__aexit__(*error)


@asynccontextmanager
async def running_router(url: str, port: int, drain_s: float = 1.0):  # type: ignore[no-untyped-def]
    """Stopped at the end of the block, before its caller's connection is."""
    listen = f"127.0.0.1:{port}"
    settings = RouterSettings(_cli_parse_args=[], nats_url=url, listen=listen, drain_s=drain_s, alone_tokens=0)
    stop = asyncio.Event()
    serving = asyncio.create_task(serve(settings, stop))
    async with open_channel(f"127.0.0.1:{port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        await eventually(lambda: _is_healthy(health))
        yield router_pb2_grpc.RouterServiceStub(channel)
        stop.set()
        await serving


async def _is_healthy(health) -> bool:  # type: ignore[no-untyped-def]
    request = health_pb2.HealthCheckRequest(service="forebay.v1.RouterService")
    try:
        answer = await health.Check(request, wait_for_ready=True)
    except Exception:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def fleet_of(stub) -> router_pb2.GetFleetResponse:  # type: ignore[no-untyped-def]
    return await stub.GetFleet(router_pb2.GetFleetRequest())


async def mode_of(stub, forced: int = 0) -> int:  # type: ignore[no-untyped-def]
    request = router_pb2.GenerateRequest(tokens=router_pb2.TokenIds(token_ids=PROMPT), mode=forced)
    responses = [response async for response in stub.Generate(request, timeout=20)]
    assert responses[-1].HasField("finished")
    return int(responses[0].started.plan.mode)


async def test_the_router_serves_what_the_fleet_says(nats_server, unused_tcp_port) -> None:  # type: ignore[no-untyped-def]
    async with Fleet(nats_server.url) as fleet, running_router(nats_server.url, unused_tcp_port) as stub:

        async def has_all() -> bool:
            return len((await fleet_of(stub)).entries) == 5

        await eventually(has_all)
        seen = await fleet_of(stub)
        assert seen.is_current
        members = [member_from_proto(entry.member) for entry in seen.entries]
        assert [m.role.value for m in members] == ["decode", "kvcache", "prefill", "router", "tokenizer"]
        assert {m.worker_id: m for m in members if m.role is not Role.ROUTER} == fleet.members
        await eventually(lambda: _can(mode_of(stub)))
        assert await mode_of(stub) == common_pb2.EXECUTION_MODE_SPLIT

        publisher = KvEventPublisher(fleet.connection, "node", 5)
        publisher.start()
        stored = events_pb2.BlocksStored(tier=common_pb2.KV_TIER_DEVICE, block_hashes=HASHES)
        publisher.publish(1, [events_pb2.KvEvent(stored=stored)])

        async def is_resumed() -> bool:
            return await mode_of(stub) == common_pb2.EXECUTION_MODE_RESUME

        await eventually(is_resumed)

        loads = LoadPublisher(fleet.connection, "decode-1")
        loads.start()
        loads.update(Load(running_sequences=3))

        async def is_load_seen() -> bool:
            entries = (await fleet_of(stub)).entries
            return any(entry.load.running_sequences == 3 for entry in entries)

        await eventually(is_load_seen)
        await loads.close()
        await publisher.close()

        fleet.registrars["decode-1"].set_draining(True)

        async def is_refused() -> bool:
            try:
                with translated():
                    await mode_of(stub)
            except NoWorkerError:
                return True
            return False

        await eventually(is_refused)


async def test_requests_are_served_while_nats_is_away(nats_server, unused_tcp_port) -> None:  # type: ignore[no-untyped-def]
    async with Fleet(nats_server.url) as fleet, running_router(nats_server.url, unused_tcp_port) as stub:
        await eventually(lambda: _can(mode_of(stub)))
        nats_server.stop()

        async def is_stale() -> bool:
            return not (await fleet_of(stub)).is_current

        await eventually(is_stale)
        assert await mode_of(stub) == common_pb2.EXECUTION_MODE_SPLIT
        nats_server.start()

        async def is_current() -> bool:
            return bool((await fleet_of(stub)).is_current)

        await eventually(is_current)
        assert await mode_of(stub) == common_pb2.EXECUTION_MODE_SPLIT
        await until(lambda: fleet.is_idle)


async def test_a_caller_hears_that_the_router_was_stopped(nats_server, unused_tcp_port) -> None:  # type: ignore[no-untyped-def]
    request = router_pb2.GenerateRequest(tokens=router_pb2.TokenIds(token_ids=PROMPT))

    async def asked(stub) -> None:  # type: ignore[no-untyped-def]
        with translated():
            async for _ in stub.Generate(request, timeout=20):
                pass

    async with Fleet(nats_server.url) as fleet:
        async with running_router(nats_server.url, unused_tcp_port, drain_s=0.1) as stub:
            await eventually(lambda: _can(mode_of(stub)))
            fleet.script.held_after = 2
            asking = asyncio.create_task(asked(stub))
            await until(lambda: fleet.decode.running)
        with pytest.raises(DrainingError, match=r"the router was stopped .* 0\.1 s later"):
            await asking
        await until(lambda: fleet.is_idle)


async def _can(asked) -> bool:  # type: ignore[no-untyped-def]
    try:
        await asked
    except Exception:
        return False
    return True
