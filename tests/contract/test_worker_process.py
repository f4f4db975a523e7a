"""A decode worker as the process it is: its KV-cache service is killed and started again; its engine breaks."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.host.shared_memory import remove_segments, segment_name, segment_path
from forebay.rpc.channel import open_channel
from forebay.testing.nats_server import NatsServer
from forebay.testing.tiny_models import write_tiny_model
from forebay.testing.waiting import until

START_TIMEOUT_S = 60.0
NODE_ID = f"test-{os.getpid()}-worker"


# A decode worker whose engine's thread meets what no request can bring about, once it gets SIGUSR1: the cores' control
# page does not take the priority.
BREAKABLE_WORKER = """
import asyncio, dataclasses, signal
from forebay.decode.config import DecodeSettings
from forebay.decode.kind import KIND
from forebay.engine.types import SamplingParams
from forebay.rpc.service import run
from forebay.worker.running_sequence import SequenceSpec
from forebay.worker.service import serve_worker

class Odd(int):
    def __lt__(self, other):
        raise TypeError("a priority that cannot be compared")
    __gt__ = __lt__

async def compute(runner):
    odd = SequenceSpec("odd", [1], SamplingParams(max_tokens=4, seed=0), bytes(16), priority=Odd(0))
    async with runner.open(odd, lambda token_id, logprobs: None) as running:
        await running.ended()

def make_servicer(worker):
    tasks = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, lambda: tasks.append(loop.create_task(compute(worker.runner))))
    return KIND.make_servicer(worker)

async def serve(settings, stop):
    await serve_worker(dataclasses.replace(KIND, make_servicer=make_servicer), settings, stop)

run("decode", DecodeSettings, serve)
"""


class Node:
    """Services of one node, as processes, over a tiny model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nats = NatsServer(folder)
        self.model = write_tiny_model(folder / "tiny")
        self.running: list[subprocess.Popen[bytes]] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.kvcache_address = f"127.0.0.1:{probe.getsockname()[1]}"

    def start(self, name: str, *arguments: str, script: str | None = None) -> subprocess.Popen[bytes]:
        program = ("-m", f"forebay.{name}") if script is None else ("-c", script)
        common = ("--node-id", NODE_ID, "--nats-url", self.nats.url, "--model", str(self.model), "--drain-s", "0")
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *program, *common, *arguments],
                env={**os.environ, "FOREBAY_CACHE": str(self.folder / "cache")},
                stderr=log,
            )
        self.running.append(process)
        return process

    def start_kvcache(self) -> subprocess.Popen[bytes]:
        sizes = ("--device-bytes", str(1 << 20), "--host-bytes", "0")
        return self.start("kvcache", "--listen", self.kvcache_address, *sizes)

    def start_worker(self, script: str | None = None) -> subprocess.Popen[bytes]:
        arguments = ("--listen", "127.0.0.1:0", "--kvcache", self.kvcache_address, "--threads", "1")
        return self.start("decode", *arguments, script=script)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def is_serving(self, name: str) -> bool:
        return "listening on" in self.log(name)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        for process in reversed(node.running):
            process.kill()
            process.wait()
        node.nats.stop()
        remove_segments(NODE_ID)


def mapped_memory(pid: int) -> set[str]:
    """The node's DEVICE segments that a process has mapped: inode and name; the kernel adds "(deleted)"."""
    path = str(segment_path(segment_name(NODE_ID, "device")))
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {" ".join(line.split()[4:]) for line in lines if path in line}


async def test_a_worker_lets_go_of_the_memory_of_a_service_that_was_killed(node: Node) -> None:
    kvcache, worker = node.start_kvcache(), node.start_worker()
    await until(lambda: node.is_serving("decode"), START_TIMEOUT_S)
    seen = mapped_memory(worker.pid)

    def has_only_new_memory() -> bool:
        mapped = mapped_memory(worker.pid)
        return len(mapped) == 1 and mapped.isdisjoint(seen) and "deleted" not in "".join(mapped)

    for _ in range(2):
        kvcache.kill()
        kvcache.wait()
        await until(lambda: not mapped_memory(worker.pid), START_TIMEOUT_S)  # the next service may need its room
        kvcache = node.start_kvcache()
        await until(has_only_new_memory, START_TIMEOUT_S)
        seen |= mapped_memory(worker.pid)
    assert len(seen) == 3


async def test_a_worker_whose_engine_breaks_says_so_and_ends(node: Node) -> None:
    node.start_kvcache()
    worker = node.start_worker(BREAKABLE_WORKER)
    await until(lambda: node.is_serving("decode"), START_TIMEOUT_S)
    (address,) = re.findall(r"listening on (\S+)", node.log("decode"))
    channel = open_channel(address)
    try:
        healths = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=START_TIMEOUT_S)
        seen = []
        async for health in healths:
            seen.append(health_pb2.HealthCheckResponse.ServingStatus.Name(health.status))
            if seen[-1] == "SERVING":
                worker.send_signal(signal.SIGUSR1)
            elif "SERVING" in seen:
                break
    finally:
        await channel.close()
    assert seen[-2:] == ["SERVING", "NOT_SERVING"]
    await until(lambda: worker.poll() is not None, START_TIMEOUT_S)
    assert worker.returncode == 1
    assert "the engine's thread cannot go on" in node.log("decode")
