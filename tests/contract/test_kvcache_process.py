"""The KV-cache service as the process it is: workers killed with -9, SIGTERM, and starts that are refused."""

import asyncio
import json
import signal
import subprocess
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from forebay.errors import StaleEpochError, WriterActiveError
from forebay.models.config_from_huggingface import config_from_huggingface
from forebay.models.decoder_tensors import tensor_shapes
from forebay.rpc.channel import open_channel
from forebay.testing.kv_worker import KvWorker, attach, numbered_hashes, seal_entry
from forebay.testing.kvcache_process import KvCacheProcess
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc

# Attaches as worker "victim", begins sequence "s", seals one block, tells the epoch, and writes on until it is killed.
VICTIM = """
import asyncio, sys
from forebay.rpc.channel import open_channel
from forebay.testing.kv_worker import attach, numbered_hashes, seal_entry
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc

async def main():
    async with open_channel(sys.argv[1]) as channel:
        stub = kvcache_pb2_grpc.KvCacheServiceStub(channel)
        stats = await stub.GetStats(kvcache_pb2.GetStatsRequest())
        worker = await attach(stub, stats.model_digest, stats.layout, worker_id="victim", arithmetic=stats.arithmetic)
        grant = await worker.begin(block_count=3)
        await worker.seal(seal_entry(grant.epoch, numbered_hashes(1)))
        print(grant.epoch, *grant.block_ids, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        worker.stream.cancel()
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-model")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 16, "hidden_size": 8,
        "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 64, "tie_word_embeddings": True,
        "eos_token_id": 1, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    shapes = tensor_shapes(config_from_huggingface(folder))
    save_file({name: np.zeros(shape, np.float32) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("nats")
    server = Path(sys.executable).parent / "nats-server"
    command = [server, "-a", "127.0.0.1", "-p", "-1", "-js", "-sd", folder / "store", "--ports_file_dir", folder]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        ports = folder / f"nats-server_{process.pid}.ports"
        wait_until(lambda: ports.exists() and ports.read_text().endswith("}"))
        yield json.loads(ports.read_text())["nats"][0]
        process.terminate()


@pytest.fixture
def running(request: pytest.FixtureRequest, model: Path, nats_url: str) -> Iterator[KvCacheProcess]:
    """A service; the parameter is how long it keeps what a dead worker leaves, seconds."""
    offer_s = getattr(request, "param", 60)
    service = KvCacheProcess(model, nats_url, "--lease-s", "60", "--offer-s", str(offer_s), "--drain-s", "0")
    yield service
    service.process.terminate()
    assert service.finish()[0] == 0
    assert service.segments() == []


@dataclass
class Scene:
    """A worker that holds sequence "s", and another that wants it."""

    victim: asyncio.subprocess.Process
    epoch: int
    block_ids: list[int]
    rescuer: KvWorker

    def tell_victim(self) -> None:
        assert self.victim.stdin is not None
        self.victim.stdin.write(b"\n")

    async def leased(self) -> int:
        return (await self.rescuer.stub.GetStats(kvcache_pb2.GetStatsRequest())).tiers[0].leased_blocks


@pytest.fixture
async def scene(running: KvCacheProcess) -> AsyncIterator[Scene]:
    address = await asyncio.to_thread(running.address)
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", VICTIM, address, stdin=PIPE, stdout=PIPE)
    async with open_channel(address) as channel:
        stub = kvcache_pb2_grpc.KvCacheServiceStub(channel)
        stats = await stub.GetStats(kvcache_pb2.GetStatsRequest())
        rescuer = await attach(stub, stats.model_digest, stats.layout, worker_id="rescuer", arithmetic=stats.arithmetic)
        assert victim.stdout is not None
        epoch, *block_ids = map(int, (await victim.stdout.readline()).split())
        yield Scene(victim, epoch, block_ids, rescuer)
    if victim.returncode is None:
        victim.kill()
    await victim.wait()


async def taken_over(scene: Scene) -> kvcache_pb2.AcquireBlocksResponse:
    """As a router does it: tries again as long as the service says that this helps."""
    while True:
        try:
            return await scene.rescuer.take_over(scene.epoch, block_count=4)
        except WriterActiveError as error:
            await asyncio.sleep(error.retry_after_s or 0)


async def test_killed_worker_loses_nothing(scene: Scene) -> None:
    with pytest.raises(WriterActiveError):
        await scene.rescuer.take_over(scene.epoch)
    scene.victim.send_signal(signal.SIGKILL)
    async with asyncio.timeout(20):  # its lease has 60 s left
        taken = await taken_over(scene)
    assert list(taken.block_ids[:3]) == scene.block_ids
    assert (taken.cached_block_count, taken.copied_bytes) == (1, 0)
    await scene.rescuer.seal(seal_entry(taken.epoch, numbered_hashes(2)))
    await scene.rescuer.release(("s", taken.epoch))
    assert await scene.leased() == 0


@pytest.mark.parametrize("running", [0.5], indirect=True)
async def test_what_a_killed_worker_held_is_freed_long_before_its_lease_ends(scene: Scene) -> None:
    scene.victim.send_signal(signal.SIGKILL)
    async with asyncio.timeout(20):  # its lease has 60 s left
        while await scene.leased():
            pass


async def test_stopped_worker_keeps_its_blocks_until_it_is_killed(scene: Scene) -> None:
    scene.victim.send_signal(signal.SIGSTOP)
    with pytest.raises(WriterActiveError):
        await scene.rescuer.take_over(scene.epoch)
    scene.victim.kill()
    await scene.victim.wait()
    assert (await scene.rescuer.take_over(scene.epoch)).epoch > scene.epoch


async def test_worker_that_lives_on_without_its_stream_is_fenced(scene: Scene) -> None:
    scene.tell_victim()
    async with asyncio.timeout(20):
        while (await scene.rescuer.stub.GetStats(kvcache_pb2.GetStatsRequest())).attached_workers == 2:
            pass
    with pytest.raises(WriterActiveError):
        await scene.rescuer.take_over(scene.epoch)
    assert await scene.leased() == 2
    scene.victim.kill()
    await scene.victim.wait()
    assert (await scene.rescuer.take_over(scene.epoch)).epoch > scene.epoch, "at once: nobody can write any more"


async def test_restarted_request_begins_anew_where_the_dead_worker_had_sealed(scene: Scene) -> None:
    scene.victim.kill()
    await scene.victim.wait()
    grant = await scene.rescuer.begin("s", 3, numbered_hashes(2))
    assert grant.cached_block_count == 1
    with pytest.raises(StaleEpochError):
        await scene.rescuer.take_over(scene.epoch)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--device-bytes", "100"], "--device-bytes 100 has no room for one block"),
        (["--device-bytes", str(1 << 50)], "lower --device-bytes"),
        (["--model", "/nowhere"], "/nowhere: no such model"),
        (["--chip-class", "abacus"], "choose one of: cpu-bandwidth, cpu-bandwidth-a8, cpu-bandwidth-w8, cpu-bf16"),
    ],
)
def test_start_is_refused_in_one_line(model: Path, nats_url: str, arguments: list[str], says: str) -> None:
    service = KvCacheProcess(model, nats_url, *arguments)
    code, errors = service.finish()
    assert code == 2
    assert says in errors
    assert len(errors.splitlines()) == 1
    assert service.segments() == []


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
