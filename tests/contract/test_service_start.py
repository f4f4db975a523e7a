"""The start of a service: wrong usage is told in one line, and one that still starts ends when it is told to."""

import asyncio
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from forebay.rpc.address import checked_address

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


@pytest.mark.parametrize(
    ("service", "flag", "address"),
    [
        ("router", "--listen", "nonsense"),
        ("tokenizer", "--listen", "127.0.0.1:65536"),
        ("router", "--advertise", "http://127.0.0.1:7400"),
        ("decode", "--kvcache", "7402"),
    ],
)
def test_what_is_no_address_is_told_how_one_looks(service: str, flag: str, address: str) -> None:
    command = [sys.executable, "-m", f"forebay.{service}", flag, address]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert refused.stderr == (
        f"forebay {service}: {flag}: {address!r} is not HOST:PORT with a port in 0..65535, "
        "such as 127.0.0.1:7400 or [::1]:7400\n"
    )


@pytest.mark.parametrize(
    ("flag", "given", "words"),
    [("--drain-s", "soon", "number"), ("--drain-s", "-1", "greater"), ("--node-id", "a b", "pattern")],
)
def test_wrong_usage_says_what_was_given(flag: str, given: str, words: str) -> None:
    command = [sys.executable, "-m", "forebay.router", f"{flag}={given}"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"forebay router: {flag}: ")
    assert words in refused.stderr
    assert refused.stderr.endswith(f", not {given!r}\n")


@pytest.mark.parametrize("service", ["decode", "router"])
def test_a_fleet_file_that_makes_no_sense_is_refused_at_start(service: str, tmp_path: Path) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text("chip_classes: {cpu-compute: {watts: -1}}")
    command = [sys.executable, "-m", f"forebay.{service}", *ARGUMENTS, "--fleet-file", str(path)]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert f"{path}: chip_classes.cpu-compute.watts: must be at least 0 and at most 1e+06, not -1" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:65535", "[::1]:7400", "node-1.example:7400"])
def test_addresses_are_taken_as_they_are(address: str) -> None:
    assert checked_address(address) == address


@pytest.mark.parametrize(
    ("service", "said"),
    [
        ("router", "The router accepts"),
        ("tokenizer", "The tokenizer turns text"),
        ("prefill", "A prefill worker computes prompts"),
        ("decode", "A decode worker generates tokens"),
        ("kvcache", "A node's KV-cache service owns the KV memory"),
    ],
)
def test_help_names_the_service_and_says_what_it_is(service: str, said: str) -> None:
    command = [sys.executable, "-m", f"forebay.{service}", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert shown.startswith(f"usage: python -m forebay.{service} ")
    assert f"\n\n{said} " in shown
    assert "lambda" not in shown
