"""What moves KV blocks from node to node, beside a bare pair of Python processes with one loopback TCP socket.

Two processes, 128 blocks of the default model (737,280 bytes) in memory on each side, about 1 GB a measurement. A round
measures, one after the other:
  bare pair            sendall of memoryviews, recv_into a preallocated buffer; of 1 and of 4 MiB, the faster counts
  bare gRPC stream     grpc.aio on both sides, byte-identity serialisers, pieces of 1 MiB, copied into memory
  pull over gRPC       ours: digests verified, blocks delivered, flow control, as between two KV-cache services
  pull over TCP        the same with the bytes on a data connection
Shares are those of a round's own bare pair. CPU seconds are of the whole process, per GB (10^9 bytes) moved.

Examples:
  scripts/bench transfer              five rounds, half a minute
  scripts/bench transfer --rounds 1   a look
"""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import grpc

from forebay.host.heap import keep_freed_memory
from forebay.kv.block_transport import BlockTransport, PullRequest, SourceNode
from forebay.kvcache.transfer.grpc_transport import GrpcBlockTransport
from forebay.kvcache.transfer.peer_channels import PeerChannels
from forebay.kvcache.transfer.puller import BlockPuller
from forebay.kvcache.transfer.tcp_transport import TcpBlockTransport
from forebay.rpc.channel import MAX_MESSAGE_BYTES
from scripts.benchmarks.kv_blocks import LAYOUT
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, report
from scripts.benchmarks.transfer_source import BARE_METHOD, BLOCK_COUNT, cpu_s, hashes

_MIB: Final = 1024 * 1024
_TOTAL_BYTES: Final = 1024 * _MIB
_AT_ONCE: Final = 8
_GB: Final = 1e9
_NAMES: Final = {
    "bare": "bare pair, one TCP socket",
    "stream": "bare gRPC stream",
    "grpc": "pull over gRPC",
    "tcp": "pull over TCP",
    "many": f"{_AT_ONCE} pulls at once over TCP",
}
_TARGETS: Final = {"grpc": ">= 0.7", "tcp": ">= 0.7"}


@dataclass(frozen=True, slots=True)
class Moved:
    """One measurement. The CPU seconds are per GB."""

    gb_per_s: float
    sender_cpu_s: float
    receiver_cpu_s: float


class Memory:
    """BlockTarget over one piece of memory, as an arena is."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(BLOCK_COUNT * LAYOUT.block_bytes))
        self.arrived_count = 0

    def memory(self, block_index: int) -> memoryview:
        """As BlockTarget.memory."""
        return self.view[block_index * LAYOUT.block_bytes : (block_index + 1) * LAYOUT.block_bytes]

    def arrived(self, block_index: int) -> None:
        """As BlockTarget.arrived."""
        self.arrived_count += 1

    def present(self, block_index: int) -> None:
        """As BlockTarget.present."""
        raise AssertionError("the source is another node")


class Source:
    """The sending process."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "scripts.benchmarks.transfer_source"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addresses = json.loads(self._line())

    def __enter__(self) -> "Source":
        """The process itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends it."""
        self._process.kill()
        self._process.communicate()

    def cpu_s(self) -> float:
        """Its CPU seconds so far."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()


def run(options: Options) -> None:
    """`rounds` rounds of each."""
    keep_freed_memory()  # as the KV-cache service does
    with Source() as source:
        rounds = asyncio.run(_rounds(source, options.rounds))
    report("transfer", _figures(rounds))


async def _rounds(source: Source, count: int) -> list[dict[str, Moved]]:
    memory, channels = Memory(), PeerChannels()
    tcp, over_grpc = TcpBlockTransport(channels), GrpcBlockTransport(channels)

    async def one_round() -> dict[str, Moved]:
        bare = [
            await _measured(source, lambda size=size: _bare(source, memory, size))  # type: ignore[misc]
            for size in (_MIB, 4 * _MIB)
        ]
        return {
            "bare": max(bare, key=lambda moved: moved.gb_per_s),
            "stream": await _measured(source, lambda: _stream(source, memory)),
            "grpc": await _measured(source, lambda: _pulls(source, memory, over_grpc, 1)),
            "tcp": await _measured(source, lambda: _pulls(source, memory, tcp, 1)),
            "many": await _measured(source, lambda: _pulls(source, memory, tcp, _AT_ONCE)),
        }

    await one_round()  # pages touched, channels open
    rounds = [await one_round() for _ in range(count)]
    await channels.close()
    return rounds


async def _measured(source: Source, move: Callable[[], Awaitable[int]]) -> Moved:
    sender_s, receiver_s, began_s = source.cpu_s(), cpu_s(), time.perf_counter()
    gigabytes = await move() / _GB
    took_s = time.perf_counter() - began_s
    receiver_s = cpu_s() - receiver_s
    return Moved(gigabytes / took_s, (source.cpu_s() - sender_s) / gigabytes, receiver_s / gigabytes)


async def _bare(source: Source, memory: Memory, piece_bytes: int) -> int:
    count = _TOTAL_BYTES // piece_bytes
    pieces = len(memory.view) // piece_bytes
    with socket.create_connection(("127.0.0.1", source.addresses["bare"])) as connection:
        connection.settimeout(None)
        connection.sendall(b"%d %d" % (piece_bytes, count))
        for index in range(count):
            at = index % pieces * piece_bytes
            rest = memory.view[at : at + piece_bytes]
            while len(rest):
                rest = rest[connection.recv_into(rest) :]
    return count * piece_bytes


async def _stream(source: Source, memory: Memory) -> int:
    count = _TOTAL_BYTES // _MIB
    options = (("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.enable_http_proxy", 0))
    async with grpc.aio.insecure_channel(source.addresses["stream"], options=options) as channel:
        at = 0
        open_stream: Any = channel.unary_stream(BARE_METHOD)
        async for piece in open_stream(b"%d %d" % (_MIB, count)):
            if at + _MIB > len(memory.view):
                at = 0
            memory.view[at : at + _MIB] = piece
            at += _MIB
    return count * _MIB


async def _pulls(source: Source, memory: Memory, transport: BlockTransport, at_once: int) -> int:
    """Pulls of all blocks, one after the other, or each of some blocks and several at once."""
    puller = BlockPuller([transport], time.monotonic)
    node = SourceNode("source", source.addresses["node"])
    request = PullRequest(node, hashes(), LAYOUT, timeout_s=60)
    pulls = _TOTAL_BYTES // (BLOCK_COUNT * LAYOUT.block_bytes) // at_once * at_once
    for _ in range(pulls // at_once):
        outcomes = await asyncio.gather(*(puller.pull(request, memory) for _ in range(at_once)))
        assert not any(outcome.missing for outcome in outcomes)
    return pulls * BLOCK_COUNT * LAYOUT.block_bytes


def _figures(rounds: list[dict[str, Moved]]) -> list[Figure]:
    figures = []
    for key, name in _NAMES.items():
        figures.append(Figure(name, median([one[key].gb_per_s for one in rounds]), "GB/s"))
        if key != "bare":
            shares = [one[key].gb_per_s / one["bare"].gb_per_s for one in rounds]
            figures.append(Figure("  of the bare pair", median(shares), "", _TARGETS.get(key), "bare pair"))
        figures += [
            Figure("  CPU, sender", median([one[key].sender_cpu_s for one in rounds]), "s/GB"),
            Figure("  CPU, receiver", median([one[key].receiver_cpu_s for one in rounds]), "s/GB"),
        ]
    return figures
