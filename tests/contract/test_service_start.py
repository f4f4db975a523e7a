"""A service that still starts ends when it is told to, instead of trying until it gives up."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE

import pytest

ARGUMENTS = ("--listen", "127.0.0.1:0", "--nats-url", "nats://127.0.0.1:1")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_router_that_finds_no_nats_ends_when_told_to(number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "forebay.router", *ARGUMENTS, stderr=PIPE)
    assert process.stderr is not None
    await process.stderr.readuntil(b"NATS is away")
    process.send_signal(number)
    _, errors = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert b"cannot start" not in errors
    assert b"Traceback" not in errors
