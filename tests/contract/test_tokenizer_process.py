"""The tokenizer service as the process it is: joins the fleet, drains on SIGTERM, and starts that are refused."""

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from forebay.events.connection import connect
from forebay.fleet.view import FleetView
from forebay.models.default_model import resolve_model
from forebay.models.model_file import open_model
from forebay.role import Role
from forebay.rpc.channel import open_channel
from forebay.testing.nats_server import NatsServer
from forebay.testing.waiting import until
from forebay.v1 import tokenizer_pb2, tokenizer_pb2_grpc


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    yield server.url
    server.stop()


@asynccontextmanager
async def tokenizer_process(*arguments: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "forebay.tokenizer", *arguments, stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def last_words(process: Process) -> tuple[int | None, list[str]]:
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, errors.decode().splitlines()


async def test_joins_the_fleet_serves_and_leaves_on_sigterm(nats_url: str) -> None:
    connection = await connect(nats_url, "test")
    fleet = FleetView(connection)
    await fleet.start()
    async with tokenizer_process("--listen", "127.0.0.1:0", "--nats-url", nats_url, "--node-id", "here") as process:
        await until(lambda: fleet.members)
        (member,) = fleet.members.values()
        model = open_model(resolve_model(None))
        assert (member.role, member.node_id) == (Role.TOKENIZER, "here")
        assert (member.model, member.model_digest) == (model.name, model.digest)

        async with open_channel(member.address) as channel:
            stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
            hello = tokenizer_pb2.EncodeRequest(input=tokenizer_pb2.EncodeInput(text="Hello"))
            token_ids = (await stub.Encode(hello)).token_ids
            call = stub.Detokenize()
            first = tokenizer_pb2.DetokenizeItem(stream_id=1, open=tokenizer_pb2.DetokenizeOptions())
            await call.write(tokenizer_pb2.DetokenizeRequest(items=[first]))
            await call.read()

            process.send_signal(signal.SIGTERM)
            await until(lambda: all(member.is_draining for member in fleet.members.values()))
            last = tokenizer_pb2.DetokenizeItem(stream_id=1, token_ids=token_ids, is_last=True)
            await call.write(tokenizer_pb2.DetokenizeRequest(items=[last]))
            assert (await call.read()).items[0].text == "Hello", "a draining tokenizer finishes what it began"
            assert await call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)

        code, lines = await last_words(process)
        assert code == 0
        assert not [line for line in lines if "level=error" in line]
        await until(lambda: not fleet.members)
    await fleet.close()
    await connection.close()


async def test_says_that_the_port_is_taken(nats_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with tokenizer_process("--listen", address, "--nats-url", nats_url) as process:
            code, lines = await last_words(process)

    assert code == 2
    assert f"cannot listen on {address}" in lines[-1]


async def test_says_that_the_model_is_missing_or_broken(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(resolve_model(None).read_bytes()[:2_000_000])
    for name, expected in (("absent.gguf", "no such model"), ("cut.gguf", "truncated"), (".", "config.json")):
        async with tokenizer_process("--model", str(tmp_path / name)) as process:
            code, lines = await last_words(process)

        assert code == 2
        assert len(lines) == 1
        assert expected in lines[0]
