"""The connection against a real nats-server: outages are outlived, said once, and cost the caller nothing."""

import asyncio
import logging

import pytest

from forebay.errors import StartError
from forebay.events.connection import connect
from forebay.testing.nats_server import NatsServer
from forebay.testing.waiting import until


@pytest.fixture
def nats_server(tmp_path):  # type: ignore[no-untyped-def]
    server = NatsServer(tmp_path)
    yield server
    server.stop()


async def test_messages_pass_before_and_after_an_outage(nats_server, caplog) -> None:  # type: ignore[no-untyped-def]
    caplog.set_level(logging.INFO)
    sender, reader = await connect(nats_server.url, "sender"), await connect(nats_server.url, "reader")
    heard: list[bytes] = []
    outages, returns = [], []
    reader.on_disconnected(lambda: outages.append(reader.is_connected))
    reader.on_reconnected(lambda: returns.append(reader.is_connected))

    async def handler(message) -> None:  # type: ignore[no-untyped-def]
        heard.append(message.data)

    await reader.subscribe("a.*", handler)
    await reader.flush()
    assert await sender.publish("a.b", b"1")
    await until(lambda: heard == [b"1"])

    nats_server.stop()
    await until(lambda: not sender.is_connected and outages)
    assert not await sender.publish("a.b", b"lost"), "nothing is kept for later"
    caplog.clear()
    nats_server.start()
    await until(lambda: sender.is_connected and returns)
    await reader.flush()
    assert await sender.publish("a.b", b"2")
    await until(lambda: len(heard) == 2)
    assert heard == [b"1", b"2"]
    assert returns == [True]
    assert sum("NATS is back" in record.getMessage() for record in caplog.records) == 2  # once per connection
    await sender.close()
    await reader.close()
    await sender.close()


async def test_an_outage_is_logged_once_however_long(nats_server, caplog) -> None:  # type: ignore[no-untyped-def]
    connection = await connect(nats_server.url, "x")
    caplog.clear()
    nats_server.stop()
    await until(lambda: connection._client._server_pool[0].reconnects >= 3)  # attempts made meanwhile
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "serving on what is known" in warnings[0].getMessage()
    await connection.close()


async def test_no_server_is_a_start_error_of_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StartError) as caught:
        await connect("nats://127.0.0.1:1", "x", timeout_s=0.3)
    assert "nats://127.0.0.1:1" in caught.value.message
    assert "\n" not in caught.value.message
    assert [record.getMessage().partition("; ")[2] for record in caplog.records] == ["waiting for it before serving"]


async def test_a_handler_that_fails_is_logged_and_goes_on(nats_server, caplog) -> None:  # type: ignore[no-untyped-def]
    connection = await connect(nats_server.url, "x")
    seen = []

    async def handler(message) -> None:  # type: ignore[no-untyped-def]
        seen.append(message.data)
        if message.data == b"bad":
            raise ValueError("a defect")

    await connection.subscribe("s", handler)
    await connection.publish("s", b"bad")
    await connection.publish("s", b"good")
    await until(lambda: len(seen) == 2)
    assert any("handler failed" in record.getMessage() for record in caplog.records)
    await connection.close()


async def test_dropped_messages_are_told(nats_server) -> None:  # type: ignore[no-untyped-def]
    sender, reader = await connect(nats_server.url, "sender"), await connect(nats_server.url, "reader")
    dropped = []
    gate = asyncio.Event()

    async def handler(message) -> None:  # type: ignore[no-untyped-def]
        await gate.wait()

    subscription = await reader.subscribe("s", handler, lambda: dropped.append(True))
    subscription._pending_bytes_limit = 1_000
    await reader.flush()
    for _ in range(10):
        await sender.publish("s", b"x" * 500)
    await until(lambda: dropped)
    gate.set()
    await sender.close()
    await reader.close()
