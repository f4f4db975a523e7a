"""KV memory on a GPU: the same port as shared memory, the runtime's calls, two processes, and a whole service over it.

The runtime is a stand-in in C, which carries copies out only when they are waited for. `tests/gpu` asks a real one.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from xxhash import xxh3_128_digest

from forebay.errors import StartError
from forebay.host.gpu_memory import OpenedGpuMemory
from forebay.host.gpu_runtime import LIBRARY_VARIABLE, GpuError, GpuRuntime, gpu_device
from forebay.kv.effects import BlockRecord, CopyBlock
from forebay.kv.segment import MemorySegment
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena
from forebay.kvcache.digests import BlockDigests
from forebay.kvcache.gpu_arena import GpuArena, PinnedArena
from forebay.kvcache.memory_tier import runtime_of
from forebay.kvcache.mover import BlockMover
from forebay.rpc.channel import open_channel
from forebay.testing.gpu_stand_in import build_gpu_stand_in, clear_gpu_stand_in
from forebay.testing.kv_worker import numbered_hashes
from forebay.testing.kvcache_process import KvCacheProcess, attach_writer
from forebay.v1 import common_pb2, kvcache_pb2, kvcache_pb2_grpc
from forebay.wire.kv_rights import segment_from_proto, segment_to_proto
from forebay.worker.arena_map import open_segment

BLOCK_BYTES = 100
FAMILIES = ("cuda", "hip")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = build_gpu_stand_in(tmp_path_factory.mktemp("gpu"))
    if built is None:
        pytest.skip("no C compiler to make the stand-in for a GPU's runtime with")
    return built


@pytest.fixture(params=FAMILIES)
def runtime(request: pytest.FixtureRequest, library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GpuRuntime]:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(library))
    yield GpuRuntime(gpu_device(f"{request.param}:0"))
    clear_gpu_stand_in(os.getpid())


@pytest.fixture(params=["shared memory", *FAMILIES])
def arenas(
    request: pytest.FixtureRequest, library: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Any, Arena]]:
    """DEVICE memory of each kind, of 8 blocks, and HOST memory of 4."""
    monkeypatch.setenv(LIBRARY_VARIABLE, str(library))
    node_id, size_bytes = f"test-gpu-{os.getpid()}", 8 * 128
    with ExitStack() as stack:
        host = stack.enter_context(closing(Arena(node_id, Tier.HOST, 4 * 128, BLOCK_BYTES)))
        if request.param == "shared memory":
            device: Any = Arena(node_id, Tier.DEVICE, size_bytes, BLOCK_BYTES)
        else:
            runtime = GpuRuntime(gpu_device(f"{request.param}:0"))
            stack.enter_context(closing(PinnedArena(runtime, host)))
            device = GpuArena(runtime, Tier.DEVICE, size_bytes, BLOCK_BYTES)
        yield stack.enter_context(closing(device)), host


def content(number: int) -> memoryview:
    return memoryview(bytearray((number + index) % 251 for index in range(BLOCK_BYTES)))


def fill(mover: BlockMover, tier: Tier, index: int, number: int) -> None:
    opened = mover.open(tier, index)
    opened[:] = content(number)
    mover.written(tier, index, opened)


def test_blocks_keep_their_bits_between_the_tiers(arenas: tuple[Any, Arena]) -> None:
    device, host = arenas
    mover = BlockMover({Tier.DEVICE: device, Tier.HOST: host}, BLOCK_BYTES)
    assert (device.block_count, device.block_stride_bytes) == (8, 128)
    for index in range(8):
        fill(mover, Tier.DEVICE, index, 10 * index)
    mover.move(
        [
            CopyBlock(Tier.DEVICE, 7, Tier.HOST, 0),  # demoted, and at once its place is another's
            CopyBlock(Tier.DEVICE, 3, Tier.DEVICE, 7),
            CopyBlock(Tier.HOST, 0, Tier.HOST, 2),
            CopyBlock(Tier.HOST, 2, Tier.DEVICE, 3),
        ]
    )
    assert mover.copied_bytes == 4 * BLOCK_BYTES
    assert mover.read(Tier.HOST, 0) == content(70)
    assert mover.read(Tier.DEVICE, 3) == content(70)
    assert mover.read(Tier.DEVICE, 7) == content(30)
    assert [mover.read(Tier.DEVICE, index) == content(10 * index) for index in (0, 1, 2, 4, 5, 6)] == [True] * 6


def test_digests_are_those_of_the_bytes(arenas: tuple[Any, Arena]) -> None:
    device, host = arenas
    mover = BlockMover({Tier.DEVICE: device, Tier.HOST: host}, BLOCK_BYTES)
    digests = BlockDigests(mover.read)
    fill(mover, Tier.DEVICE, 5, 1)
    assert digests.of(Tier.DEVICE, 5) == xxh3_128_digest(content(1))
    digests.forget([BlockRecord(Tier.DEVICE, 5, None)])
    fill(mover, Tier.DEVICE, 5, 2)
    assert digests.of(Tier.DEVICE, 5) == xxh3_128_digest(content(2))


def test_no_room_for_a_block_is_said(arenas: tuple[Any, Arena], runtime: GpuRuntime) -> None:
    with pytest.raises(StartError, match="--device-bytes 100 has no room for one block of 128 bytes"):
        GpuArena(runtime, Tier.DEVICE, 100, BLOCK_BYTES)


def test_more_than_the_device_has_is_said(runtime: GpuRuntime) -> None:
    with pytest.raises(
        StartError, match=f"{runtime.device.family}Malloc on .* failed with 2: out of memory; lower --dev"
    ):
        GpuArena(runtime, Tier.DEVICE, 1 << 40, BLOCK_BYTES)


WRITER = """
import ctypes, sys
from forebay.host.gpu_memory import OpenedGpuMemory
memory = OpenedGpuMemory(sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3]))
ctypes.memset(memory.address + 2 * 128, 7, 100)
print("written", flush=True)
input()
ctypes.memset(memory.address + 2 * 128, 9, 100)  # its mapping outlives the memory's owner
memory.close()
print("closed", flush=True)
"""


def test_what_a_worker_process_writes_is_there_and_later_it_harms_nobody(runtime: GpuRuntime) -> None:
    arena = GpuArena(runtime, Tier.DEVICE, 8 * 128, BLOCK_BYTES)
    segment = segment_from_proto(segment_to_proto(arena.segment))
    assert segment == arena.segment
    assert segment.device == str(runtime.device)
    with subprocess.Popen(  # our own source
        [sys.executable, "-c", WRITER, segment.device, segment.ipc_handle.hex(), str(segment.size_bytes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "written\n"
        mover = BlockMover({Tier.DEVICE: arena}, BLOCK_BYTES)
        assert bytes(mover.read(Tier.DEVICE, 2)) == b"\7" * BLOCK_BYTES
        arena.close()
        with closing(GpuArena(runtime, Tier.DEVICE, 8 * 128, BLOCK_BYTES)) as successor:
            assert successor.segment.ipc_handle != segment.ipc_handle
            mover = BlockMover({Tier.DEVICE: successor}, BLOCK_BYTES)
            fill(mover, Tier.DEVICE, 2, 1)
            assert worker.communicate("go on\n", timeout=20)[0] == "closed\n"
            assert mover.read(Tier.DEVICE, 2) == content(1)
    assert worker.returncode == 0


def test_a_handle_of_no_living_memory_is_refused(runtime: GpuRuntime) -> None:
    arena = GpuArena(runtime, Tier.DEVICE, 8 * 128, BLOCK_BYTES)
    segment = arena.segment
    arena.close()
    with pytest.raises(StartError, match=r"cannot be opened: .*IpcOpenMemHandle .* invalid resource handle"):
        open_segment(segment, BLOCK_BYTES, runtime.device.family)
    with pytest.raises(GpuError, match="64 bytes, not 3"):
        OpenedGpuMemory(segment.device, b"abc", 1)


def test_a_worker_of_another_device_is_refused(runtime: GpuRuntime) -> None:
    here = MemorySegment(Tier.DEVICE, "", 1024, 128, 8, str(runtime.device), bytes(64))
    with pytest.raises(StartError, match=f"lies on {runtime.device}, and this worker's chip class computes on cpu"):
        open_segment(here, BLOCK_BYTES, "cpu")
    with pytest.raises(StartError, match="lies on cpu, and this worker's chip class computes on cuda"):
        open_segment(MemorySegment(Tier.DEVICE, "/x", 1024, 128, 8), BLOCK_BYTES, "cuda")


@pytest.mark.parametrize(
    ("device", "named", "reason"),
    [
        ("gpu", None, "'gpu' names no GPU; write cuda:N or hip:N"),
        ("cuda:1", "stand-in", "there is no cuda:1: this machine has 1 cuda devices"),
        ("cuda:0", "/nowhere/libcudart.so", "the cuda runtime cannot be loaded .*; install it, or set FOREBAY_GPU"),
        ("hip:0", "libc.so.6", "has no function hipGetDeviceCount; is it the hip runtime?"),
    ],
)
def test_what_is_missing_is_said(
    device: str, named: str | None, reason: str, monkeypatch: pytest.MonkeyPatch, library: Path
) -> None:
    if named is not None:
        monkeypatch.setenv(LIBRARY_VARIABLE, str(library) if named == "stand-in" else named)
    with pytest.raises(StartError, match=reason) as caught:
        runtime_of(device)
    assert caught.value.message.startswith(f"--device {device}: ")


def test_without_a_gpu_asked_for_none_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, "/nowhere")
    assert runtime_of("cpu") is None


async def test_a_service_keeps_its_blocks_on_the_device(
    library: Path, tiny_model: Path, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIBRARY_VARIABLE, str(library))
    options = ("--device", "cuda:0", "--host-bytes", "131072", "--kept-after-uses", "1")
    service = KvCacheProcess(tiny_model, nats_url, *options)
    try:
        async with open_channel(service.address()) as channel:
            stub = kvcache_pb2_grpc.KvCacheServiceStub(channel)
            writer = await attach_writer(stub)
            assert writer.worker.attached.segments[0].device == "cuda:0"
            device_blocks = writer.worker.attached.segments[0].block_count
            sequences = [numbered_hashes(2, first=10 * number) for number in range(device_blocks)]
            for number, hashes in enumerate(sequences):  # twice as many blocks as the device has
                assert await writer.compute(f"first-{number}", hashes) == 0
            found = [await writer.compute(f"again-{number}", hashes) for number, hashes in enumerate(sequences)]
            assert found[0] == 2, "it lay in HOST, and came back with its bits"
            assert sum(found) > device_blocks, "more than the device holds"
            stats = await stub.GetStats(kvcache_pb2.GetStatsRequest())
            host = next(tier for tier in stats.tiers if tier.tier == common_pb2.KV_TIER_HOST)
            assert host.sealed_blocks > 0
        service.process.terminate()
        assert service.finish()[0] == 0
        assert not service.segments()
    finally:
        service.clear()
        clear_gpu_stand_in(service.process.pid)
