"""KV memory on a real GPU: allocated here, written and read by this process and another. Skipped without one."""

import os
import subprocess
import sys
from contextlib import closing

import pytest

from forebay.host.gpu_runtime import GpuError, GpuRuntime, gpu_device
from forebay.kv.effects import CopyBlock
from forebay.kv.tier import Tier
from forebay.kvcache.arena import Arena
from forebay.kvcache.gpu_arena import GpuArena, PinnedArena
from forebay.kvcache.mover import BlockMover

BLOCK_BYTES = 1 << 20

FILLER = """
import sys, torch
from forebay.host.gpu_memory import OpenedGpuMemory
memory = OpenedGpuMemory(sys.argv[1], bytes.fromhex(sys.argv[2]), int(sys.argv[3]))
torch.as_tensor(memory, device="cuda:0").fill_(7)
torch.cuda.synchronize()
"""


@pytest.fixture(params=["cuda:0", "hip:0"])
def runtime(request: pytest.FixtureRequest) -> GpuRuntime:
    try:
        return GpuRuntime(gpu_device(request.param))
    except GpuError as error:
        pytest.skip(str(error))


def test_blocks_keep_their_bits_and_are_shared(runtime: GpuRuntime) -> None:
    with (
        closing(Arena(f"test-gpu-{os.getpid()}", Tier.HOST, 4 * BLOCK_BYTES, BLOCK_BYTES)) as host,
        closing(PinnedArena(runtime, host)),
        closing(GpuArena(runtime, Tier.DEVICE, 8 * BLOCK_BYTES, BLOCK_BYTES)) as device,
    ):
        mover = BlockMover({Tier.DEVICE: device, Tier.HOST: host}, BLOCK_BYTES)
        content = os.urandom(BLOCK_BYTES)
        opened = mover.open(Tier.DEVICE, 5)
        opened[:] = content
        mover.written(Tier.DEVICE, 5, opened)
        mover.move([CopyBlock(Tier.DEVICE, 5, Tier.HOST, 1), CopyBlock(Tier.HOST, 1, Tier.DEVICE, 0)])
        assert mover.read(Tier.DEVICE, 0) == content
        segment = device.segment
        arguments = [segment.device, segment.ipc_handle.hex(), str(segment.size_bytes)]
        subprocess.run([sys.executable, "-c", FILLER, *arguments], check=True)  # our own source
        assert bytes(mover.read(Tier.DEVICE, 0)) == b"\7" * BLOCK_BYTES
