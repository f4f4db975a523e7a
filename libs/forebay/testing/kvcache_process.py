"""A KV-cache service as the process it is, and a client that writes blocks into its memory and knows them again."""

import ctypes
import subprocess
import sys
import uuid
from pathlib import Path

from forebay.host.gpu_memory import OpenedGpuMemory
from forebay.host.shared_memory import remove_segments, segments_of
from forebay.kv.hashing import HASH_BYTES
from forebay.testing.kv_worker import KvWorker, attach, seal_entry
from forebay.v1 import kvcache_pb2, kvcache_pb2_grpc
from forebay.wire.kv_rights import segment_from_proto
from forebay.wire.layout import layout_from_proto
from forebay.worker.arena_map import open_segment


class KvCacheProcess:
    """`python -m forebay.kvcache` on a port of its own choice; killed ones of one `node_id` follow each other."""

    def __init__(self, model: Path, nats_url: str, *arguments: str, node_id: str | None = None) -> None:
        self.node_id = node_id or f"test-{uuid.uuid4().hex[:12]}"
        command = [sys.executable, "-m", "forebay.kvcache", "--listen", "127.0.0.1:0", "--node-id", self.node_id]
        sizes = ["--device-bytes", "65536", "--host-bytes", "65536"]
        self.process = subprocess.Popen(  # noqa: S603  # our own module
            [*command, "--model", str(model), "--nats-url", nats_url, *sizes, *arguments],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []  # of its log, until it listened

    def address(self) -> str:
        """Waits until it listens."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if "listening on " in line:
                return line.partition("listening on ")[2].split()[0]
        raise AssertionError(f"it did not start: {self.lines}")

    def segments(self) -> list[str]:
        """Names of its shared memory."""
        return [path.name for path in segments_of(self.node_id)]

    def finish(self) -> tuple[int, str]:
        """Waits for its end; exit code and what it logged since it listened."""
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def kill(self) -> None:
        """With -9; what it has in shared memory stays."""
        self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def clear(self) -> None:
        """Kills it, if it runs, and removes what it left."""
        self.kill()
        remove_segments(self.node_id)


class WritingWorker:
    """An attached worker with the DEVICE memory mapped. What it writes into a block tells the block's hash."""

    def __init__(self, worker: KvWorker, block_bytes: int) -> None:
        self.worker = worker
        segment = segment_from_proto(worker.attached.segments[0])
        self._memory = _addressable(open_segment(segment, block_bytes, segment.device.partition(":")[0]))
        self._stride_bytes = segment.block_stride_bytes
        self._block_bytes = block_bytes

    async def compute(self, sequence_id: str, hashes: list[bytes]) -> int:
        """A request: uses what is found, checks it, writes the rest, seals and releases. Returns blocks found."""
        grant = await self.worker.begin(sequence_id, len(hashes), hashes)
        for index, block_hash in enumerate(hashes):
            block = grant.block_ids[index]
            if index < grant.cached_block_count:
                assert self.content(block) == self.expected(block_hash), "a block holds something else"
            else:
                start = block * self._stride_bytes
                self._memory[start : start + self._block_bytes] = self.expected(block_hash)
        results = await self.worker.seal(seal_entry(grant.epoch, hashes, sequence_id=sequence_id))
        assert not results[0].HasField("error_reason")
        await self.worker.release((sequence_id, grant.epoch))
        return grant.cached_block_count

    def content(self, block: int) -> bytes:
        """The block's bytes now."""
        start = block * self._stride_bytes
        return bytes(self._memory[start : start + self._block_bytes])

    def expected(self, block_hash: bytes) -> bytes:
        """What alone belongs under this hash."""
        return block_hash * (self._block_bytes // HASH_BYTES)


def _addressable(memory: memoryview | OpenedGpuMemory) -> memoryview:
    """The bytes; of a GPU only where that is the stand-in, whose memory is this machine's."""
    if isinstance(memory, OpenedGpuMemory):
        return memoryview((ctypes.c_ubyte * memory.size_bytes).from_address(memory.address)).cast("B")
    return memory


async def attach_writer(stub: "kvcache_pb2_grpc.KvCacheServiceAsyncStub", worker_id: str = "writer") -> WritingWorker:
    """Attaches this process to a running service."""
    stats = await stub.GetStats(kvcache_pb2.GetStatsRequest())
    worker = await attach(stub, stats.model_digest, stats.layout, worker_id=worker_id, arithmetic=stats.arithmetic)
    return WritingWorker(worker, layout_from_proto(stats.layout).block_bytes)
