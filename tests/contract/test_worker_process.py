"""A decode worker as the process it is, whose KV-cache service is killed and started again."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.host.shared_memory import remove_segments, segment_name, segment_path
from forebay.testing.nats_server import NatsServer
from forebay.testing.tiny_models import write_tiny_model
from forebay.testing.waiting import until

START_TIMEOUT_S = 60.0
NODE_ID = f"test-{os.getpid()}-worker"


class Node:
    """Services of one node, as processes, over a tiny model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.nats = NatsServer(folder)
        self.model = write_tiny_model(folder / "tiny")
        self.running: list[subprocess.Popen[bytes]] = []
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.kvcache_address = f"127.0.0.1:{probe.getsockname()[1]}"

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        common = ("--node-id", NODE_ID, "--nats-url", self.nats.url, "--model", str(self.model), "--drain-s", "0")
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"forebay.{name}", *common, *arguments],
                env={**os.environ, "FOREBAY_CACHE": str(self.folder / "cache")},
                stderr=log,
            )
        self.running.append(process)
        return process

    def start_kvcache(self) -> subprocess.Popen[bytes]:
        sizes = ("--device-bytes", str(1 << 20), "--host-bytes", "0")
        return self.start("kvcache", "--listen", self.kvcache_address, *sizes)

    def start_worker(self) -> subprocess.Popen[bytes]:
        arguments = ("--listen", "127.0.0.1:0", "--kvcache", self.kvcache_address, "--threads", "1")
        return self.start("decode", *arguments)

    def is_serving(self, name: str) -> bool:
        return "listening on" in (self.folder / f"{name}.log").read_text()


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
        kvcache = node.start_kvcache()
        await until(has_only_new_memory, START_TIMEOUT_S)
        seen |= mapped_memory(worker.pid)
    assert len(seen) == 3
