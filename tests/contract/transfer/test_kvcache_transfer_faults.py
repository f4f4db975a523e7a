"""Pulls whose other side is a process that is killed or stopped in the middle: the rest is said, nothing is kept."""

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from forebay.errors import DeadlineExceededError, RemoteError
from forebay.kv.block_transport import BlockTransport, PullRequest, SourceNode
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kvcache.transfer.data_listener import DataListener
from forebay.kvcache.transfer.grpc_transport import GrpcBlockTransport
from forebay.kvcache.transfer.peer_channels import PeerChannels
from forebay.kvcache.transfer.puller import STALL_S, BlockPuller
from forebay.kvcache.transfer.source import SERVICE, BlockSource, add_block_source
from forebay.kvcache.transfer.tcp_transport import TcpBlockTransport
from forebay.rpc.server import Server
from forebay.testing.plain_blocks import PlainBlocks, PlainTarget, random_block
from forebay.testing.waiting import until

LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=12, kv_heads=3, head_dim=64, block_tokens=32)
COUNT = 200
"""Of blocks: several windows, so that the pull is in its middle when the sixth has come."""
FAULT_AT = 5
TRANSPORTS = {"tcp": TcpBlockTransport, "grpc": GrpcBlockTransport}

SOURCE = """
import asyncio
from tests.contract.transfer import test_kvcache_transfer_faults as faults

async def main():
    async with faults.source() as (address, _):
        print(address, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

RECEIVER = """
import asyncio, os, sys
from tests.contract.transfer import test_kvcache_transfer_faults as faults

name, address, timeout_s, signal_number = sys.argv[1:]

async def main():
    def on_arrival(index):
        if index == faults.FAULT_AT:
            print("there", flush=True)
            os.kill(os.getpid(), int(signal_number))
    await faults.pull(name, address, float(timeout_s), on_arrival)

asyncio.run(main())
"""


def hashes() -> list[bytes]:
    return [index.to_bytes(16, "big") for index in range(COUNT)]


@asynccontextmanager
async def source() -> AsyncIterator[tuple[str, PlainBlocks]]:
    blocks, listener, server = PlainBlocks(LAYOUT), DataListener("127.0.0.1"), Server("127.0.0.1:0")
    for block_hash in hashes():
        blocks.seal(block_hash, random_block(block_hash, LAYOUT.block_bytes))
    listener.start()
    server.add(add_block_source, BlockSource(blocks, listener), SERVICE)
    yield await server.start(), blocks
    await server.stop(0)
    await listener.close()


async def pull(
    name: str, address: str, timeout_s: float, on_arrival: Callable[[int], None], stall_s: float = STALL_S
) -> dict[int, Exception]:
    """What is missing, and why; what has arrived is right."""
    channels = PeerChannels()
    transport: BlockTransport = TRANSPORTS[name](channels)
    target = PlainTarget(COUNT, LAYOUT.block_bytes, on_arrival)
    request = PullRequest(SourceNode("far", address), hashes(), LAYOUT, timeout_s)
    outcome = await BlockPuller([transport], time.monotonic, stall_s).pull(request, target)
    await channels.close()
    assert list(outcome.arrived) == target.arrivals
    assert sorted({*outcome.arrived, *outcome.missing}) == list(range(COUNT))
    for index in outcome.arrived:
        assert target.blocks[index] == random_block(hashes()[index], LAYOUT.block_bytes)
    return dict(outcome.missing)


@asynccontextmanager
async def process(code: str, *arguments: str) -> AsyncIterator[Process]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, ["", *sys.path]))}
    started = await asyncio.create_subprocess_exec(sys.executable, "-c", code, *arguments, stdout=PIPE, env=environment)
    yield started
    if started.returncode is None:
        started.kill()
    await started.wait()


async def line_of(started: Process) -> str:
    assert started.stdout is not None
    return (await started.stdout.readline()).decode().strip()


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize(("number", "error"), [(signal.SIGKILL, RemoteError), (signal.SIGSTOP, DeadlineExceededError)])
async def test_a_source_that_ends_or_stops(name: str, number: signal.Signals, error: type[Exception]) -> None:
    async with process(SOURCE) as far:
        address = await line_of(far)

        def on_arrival(index: int) -> None:
            if index == FAULT_AT:
                far.send_signal(number)

        async with asyncio.timeout(20):
            missing = await pull(name, address, 2.0, on_arrival)
    assert 0 < len(missing) < COUNT, "it ended in the middle"
    assert {type(one) for one in missing.values()} == {error}


@pytest.mark.parametrize("name", TRANSPORTS)
async def test_a_frozen_source_is_not_waited_for_to_the_deadline(name: str) -> None:
    async with process(SOURCE) as far:
        address = await line_of(far)

        def on_arrival(index: int) -> None:
            if index == FAULT_AT:
                far.send_signal(signal.SIGSTOP)

        async with asyncio.timeout(20):
            missing = await pull(name, address, 600.0, on_arrival, stall_s=0.5)
    assert 0 < len(missing) < COUNT
    assert {str(one) for one in missing.values()} == {"no block came from the source for 0.5 s"}


@pytest.mark.parametrize("name", TRANSPORTS)
@pytest.mark.parametrize(("number", "timeout_s"), [(signal.SIGKILL, 600.0), (signal.SIGSTOP, 2.0)])
async def test_a_receiver_that_ends_or_stops(name: str, number: signal.Signals, timeout_s: float) -> None:
    async with source() as (address, blocks), process(RECEIVER, name, address, str(timeout_s), str(int(number))) as far:
        assert await line_of(far) == "there"
        await until(lambda: blocks.references == 0)  # at once, or by the deadline that the source was given
