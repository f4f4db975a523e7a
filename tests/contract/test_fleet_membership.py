"""Membership on a real nats-server: joining, draining, leaving, dying without goodbye, and NATS restarting."""

import asyncio
import logging

import pytest

from forebay.events.connection import connect
from forebay.fleet.load import LoadPublisher, LoadView
from forebay.fleet.member import Load, Member
from forebay.fleet.registrar import Registrar
from forebay.fleet.view import FleetView
from forebay.role import Role
from forebay.testing.nats_server import NatsServer
from forebay.testing.scripted_workers import LAYOUT
from forebay.testing.waiting import until

TTL_S = 1.0  # the least that JetStream's markers allow

DECODE = Member(
    worker_id="decode-1",
    role=Role.DECODE,
    address="127.0.0.1:7",
    node_id="n1",
    model="m",
    model_digest="d",
    chip_class="cpu",
    layout=LAYOUT,
    max_sequences=8,
    version="1",
    incarnation=2**63,
)
PREFILL = Member(worker_id="prefill-1", role=Role.PREFILL, address="127.0.0.1:9", node_id="n1")


@pytest.fixture
def nats_server(tmp_path):  # type: ignore[no-untyped-def]
    server = NatsServer(tmp_path)
    yield server
    server.stop()


async def die(registrar: Registrar) -> None:
    """What the fleet sees when a process is killed: no more renewals, no goodbye."""
    assert registrar._task is not None
    registrar._task.cancel()
    await asyncio.gather(registrar._task, return_exceptions=True)


async def test_join_drain_leave(nats_server) -> None:  # type: ignore[no-untyped-def]
    connection, watching = await connect(nats_server.url, "worker"), await connect(nats_server.url, "router")
    view = FleetView(watching)
    assert not view.is_current
    changes: list[set[str]] = []
    view.on_change(lambda: changes.append(set(view.members)))
    await view.start()
    await view.wait_loaded()
    assert view.is_current
    assert not view.members
    registrar = Registrar(connection, DECODE)
    await registrar.start()
    await until(lambda: view.members.get("decode-1") == DECODE)
    registrar.set_draining(True)
    await until(lambda: view.members["decode-1"].is_draining)
    await registrar.close()
    await until(lambda: not view.members)
    assert changes == [{"decode-1"}, {"decode-1"}, set()], "renewals are no change"
    for part in (view, connection, watching, registrar):
        await part.close()


async def test_a_late_view_sees_who_is_there(nats_server) -> None:  # type: ignore[no-untyped-def]
    connection = await connect(nats_server.url, "all")
    registrars = [Registrar(connection, member) for member in (DECODE, PREFILL)]
    for registrar in registrars:
        await registrar.start()
    view = FleetView(connection)
    await view.start()
    await view.wait_loaded()
    assert dict(view.members) == {"decode-1": DECODE, "prefill-1": PREFILL}
    for part in (view, *registrars, connection):
        await part.close()


async def test_a_member_that_dies_without_goodbye_expires(nats_server) -> None:  # type: ignore[no-untyped-def]
    connection = await connect(nats_server.url, "all")
    dying, living = Registrar(connection, DECODE, TTL_S), Registrar(connection, PREFILL, TTL_S)
    await dying.start()
    await living.start()
    view = FleetView(connection, TTL_S)
    await view.start()
    await until(lambda: len(view.members) == 2)
    await die(dying)
    await until(lambda: "decode-1" not in view.members)
    assert "prefill-1" in view.members
    for part in (view, living, connection):
        await part.close()


async def test_nats_restarts(nats_server, caplog) -> None:  # type: ignore[no-untyped-def]
    connection, watching = await connect(nats_server.url, "worker"), await connect(nats_server.url, "router")
    view = FleetView(watching, TTL_S)
    await view.start()
    dying, living = Registrar(connection, DECODE, TTL_S), Registrar(connection, PREFILL, TTL_S)
    await dying.start()
    await living.start()
    await until(lambda: len(view.members) == 2)
    seen: list[set[str]] = []
    view.on_change(lambda: seen.append(set(view.members)))

    nats_server.stop()
    await until(lambda: not view.is_current)
    await die(dying)
    assert set(view.members) == {"decode-1", "prefill-1"}, "the last known fleet"

    nats_server.start()
    await until(lambda: view.is_current)
    await until(lambda: set(view.members) == {"prefill-1"})
    assert all("prefill-1" in members for members in seen), "who lives was never gone"
    living.set_draining(True)
    await until(lambda: view.members["prefill-1"].is_draining)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    for part in (view, living, connection, watching):
        await part.close()


async def test_an_unreadable_record_harms_nobody(nats_server, caplog) -> None:  # type: ignore[no-untyped-def]
    connection = await connect(nats_server.url, "all")
    view = FleetView(connection)
    await view.start()
    await view.wait_loaded()
    bucket = await connection.jetstream().key_value("forebay-fleet")
    await bucket.put("decode.broken", b"\xff\xff")
    registrar = Registrar(connection, DECODE)
    await registrar.start()
    await until(lambda: set(view.members) == {"decode-1"})
    assert any("decode.broken" in record.getMessage() for record in caplog.records)
    for part in (view, registrar, connection):
        await part.close()


async def test_leaving_while_nats_is_away(nats_server) -> None:  # type: ignore[no-untyped-def]
    connection = await connect(nats_server.url, "worker")
    registrar = Registrar(connection, DECODE)
    await registrar.start()
    nats_server.stop()
    await until(lambda: not connection.is_connected)
    async with asyncio.timeout(5):
        await registrar.close()
        await connection.close()


async def test_load_is_told_on_change_and_forgotten_with_its_worker(nats_server) -> None:  # type: ignore[no-untyped-def]
    connection = await connect(nats_server.url, "all")
    loads, heard = LoadView(connection), list[str]()
    loads.on_report(heard.append)
    await loads.start()
    await connection.flush()
    publisher = LoadPublisher(connection, "decode-1")
    publisher.start()
    await until(lambda: loads.loads.get("decode-1") == Load())
    busy = Load(running_sequences=1, queued_sequences=2, queued_tokens=3, context_tokens=4)
    for step in range(100):  # far more often than it may be told
        publisher.update(Load(running_sequences=step))
    publisher.update(busy)
    count = len(heard)
    await until(lambda: loads.loads["decode-1"] == busy)
    assert len(heard) - count <= 2, "changes in between are skipped"
    await until(lambda: len(heard) >= count + 2)  # without a change, too
    await publisher.close()
    loads.keep({"another"})
    assert not loads.loads
    assert set(heard) == {"decode-1"}
    await loads.close()
    await connection.close()
