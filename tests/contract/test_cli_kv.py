"""`forebay kv` as an operator types it, against a real KV-cache service: what it says, and how it fails."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from forebay.cli.__main__ import main
from forebay.rpc.channel import open_channel
from forebay.rpc.server import Server
from forebay.testing.kv_worker import numbered_hashes
from forebay.testing.kvcache_process import KvCacheProcess, attach_writer
from forebay.v1 import kvcache_pb2_grpc

BLOCK_BYTES = 32 * 2 * 2 * 2 * 16 * 4  # of the tiny model in cpu-f32
HASHES = [one.hex() for one in numbered_hashes(3)]
UNKNOWN = "f" * 32


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Operator:
    """Types `forebay kv` for one service."""

    address: str
    capture: pytest.CaptureFixture[str]

    def kv(self, *arguments: str) -> Said:
        with pytest.raises(SystemExit) as ended:
            main(["kv", *arguments, "--address", self.address])
        captured = self.capture.readouterr()
        return Said(int(ended.value.code or 0), captured.out, captured.err)

    def json(self, *arguments: str) -> Any:
        said = self.kv(*arguments, "--json")
        assert said.code == 0, said.err
        return json.loads(said.out)

    def compute(self, count: int, first: int = 0) -> None:
        """A worker computes so many blocks, from this one on, and is gone."""

        async def computed() -> None:
            async with open_channel(self.address) as channel:
                writer = await attach_writer(kvcache_pb2_grpc.KvCacheServiceStub(channel))
                await writer.compute("s", numbered_hashes(first + count)[first:])

        asyncio.run(computed())


def running(tiny_model: Path, nats_url: str, *arguments: str) -> KvCacheProcess:
    sizes = ("--device-bytes", str(6 * BLOCK_BYTES), "--host-bytes", str(4 * BLOCK_BYTES))
    return KvCacheProcess(tiny_model, nats_url, "--chip-class", "cpu-f32", *sizes, *arguments)


@pytest.fixture
def service(tiny_model: Path, nats_url: str) -> Iterator[KvCacheProcess]:
    process = running(tiny_model, nats_url)
    yield process
    process.clear()


@pytest.fixture
def operator(service: KvCacheProcess, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(service.address(), capsys)


def test_stats_name_the_node_the_block_and_what_became_of_blocks(operator: Operator, service: KvCacheProcess) -> None:
    operator.compute(2)
    operator.kv("flush")
    said = operator.kv("stats")
    assert f"node: {service.node_id}; block: 32 tokens, {BLOCK_BYTES} bytes; eviction: reuse-rate\n" in said.out
    assert "gone: 0 evicted for want of room, 2 flushed, 0 lost with the disk; pinned: 0\n" in said.out
    stats = operator.json("stats")
    assert (stats["evicted_blocks"], stats["flushed_blocks"], stats["eviction_policy"]) == (0, 2, "reuse-rate")


def test_what_is_pinned_survives_a_flush_which_says_so(operator: Operator) -> None:
    operator.compute(3)
    pinned = operator.kv("pin", HASHES[0], UNKNOWN, "--ttl", "60")
    assert (pinned.code, pinned.out) == (1, f"1 block pinned for at least 60 s\n{UNKNOWN} is not held\n")
    assert operator.kv("flush").out == "2 blocks removed, each tier's copy counted; 1 block in use or pinned stay\n"
    assert operator.json("ls") == [{"hash": HASHES[0], "tier": "device"}]
    assert operator.json("stats")["pinned_blocks"] == 1


def test_pins_can_be_taken_back(operator: Operator) -> None:
    operator.compute(3)
    assert operator.kv("pin", *HASHES).code == 0
    assert operator.kv("unpin", HASHES[0], UNKNOWN).out == "1 block unpinned\n"
    assert operator.json("unpin", "--all") == {"unpinned_blocks": 2}
    assert operator.json("stats")["pinned_blocks"] == 0
    assert operator.json("flush") == {"removed_blocks": 3}
    for arguments in ((), (HASHES[0], "--all")):
        assert operator.kv("unpin", *arguments).code == 2


@pytest.mark.parametrize("ttl", ["0", "-5", "1e9", "nan", "inf"])
def test_a_time_that_no_pin_may_have_is_refused_with_those_that_it_may(operator: Operator, ttl: str) -> None:
    said = operator.kv("pin", UNKNOWN, f"--ttl={ttl}")
    assert said.code == 1
    assert said.err == (
        f"forebay: a pin lasts more than 0 s and at most 86400 s, not {float(ttl):g} s (INVALID_FIELD, field ttl_s)\n"
    )


def test_more_pins_than_there_may_be_are_refused_with_a_way_out(operator: Operator) -> None:
    operator.compute(3)
    assert operator.kv("pin", *HASHES[:1]).code == 0
    operator.compute(5)
    said = operator.kv("pin", *[one.hex() for one in numbered_hashes(5)])
    assert said.code == 1
    assert said.err == (
        "forebay: 4 more blocks cannot be pinned: 1 are, and at most 3 can be (half the device tier); name fewer, or"
        " wait until pins end (KV_EXHAUSTED)\n"
    )


def test_verify_tells_that_there_is_no_disk(operator: Operator) -> None:
    said = operator.kv("verify")
    assert (said.code, said.out) == (0, "there is no disk tier here, and nothing to verify\n")
    assert operator.json("verify") == {"verified_blocks": 0, "corrupt_blocks": 0}


def test_verify_says_that_the_disk_is_off_instead_of_whole(
    tiny_model: Path, nats_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = ("--disk-dir", str(tmp_path / "disk"), "--disk-bytes", str(8 * (BLOCK_BYTES + 8192)))
    process = running(tiny_model, nats_url, "--kept-after-uses", "1", *disk)
    try:
        operator = Operator(process.address(), capsys)
        operator.compute(6)
        operator.compute(6, first=6)  # what it pushes out goes to HOST, and is written to disk
        while operator.json("stats")["disk_written_blocks"] < 4:
            pass
        whole = operator.kv("verify")
        assert whole.out == "4 blocks of the disk tier read: none damaged\n"
        assert whole.err == "reading 4 blocks (0 MiB) of the disk tier ...\n", "what is waited for is said before"
        (file,) = (tmp_path / "disk").iterdir()
        os.truncate(file, 0)
        for _ in range(2):  # at the error, and when the tier is off
            said = operator.kv("verify")
            assert (said.code, said.out) == (1, "")
            assert said.err.endswith("(DISK_FAILED)\n")
        assert operator.kv("stats").out.endswith("; serving goes on without it until the service is started again\n")
        assert operator.json("stats")["disk_failure"]
        assert operator.json("stats")["tiers"][2]["sealed_blocks"] == 0, "what is off holds nothing"
    finally:
        process.clear()


def test_nobody_there_is_said_with_the_address_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    said = Operator(address, capsys).kv("stats")
    assert said.code == 1
    assert said.err == f"forebay: cannot reach a KV-cache service at {address}: is the mesh up? ./scripts/up\n"


def test_a_service_of_another_kind_is_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    async def asked() -> Said:
        server = Server("127.0.0.1:0")
        address = await server.start()
        try:
            return await asyncio.to_thread(Operator(address, capsys).kv, "ls")
        finally:
            await server.stop(0)

    said = asyncio.run(asked())
    assert said.code == 1
    assert "is no KV-cache service, or one of another version\n" in said.err


def test_a_service_that_hangs_is_named(operator: Operator, service: KvCacheProcess) -> None:
    service.process.send_signal(signal.SIGSTOP)
    try:
        said = operator.kv("stats")
    finally:
        service.process.send_signal(signal.SIGCONT)
    assert said.code == 1
    assert said.err.startswith("forebay: ")
    assert operator.address in said.err


@pytest.mark.parametrize("address", ["nonsense", "localhost", "127.0.0.1:99999"])
def test_an_address_that_is_none_is_a_usage_error(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = Operator(address, capsys).kv("stats")
    assert said.code == 2
    assert "is not HOST:PORT" in said.err
