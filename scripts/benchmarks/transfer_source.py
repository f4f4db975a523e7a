"""The sending process of `transfer`: the same memory by a bare socket, by a bare gRPC stream, and by our block source.

Writes one line of JSON with its addresses, then answers each line on stdin with its CPU seconds so far.
"""

import asyncio
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc

from forebay.host.heap import keep_freed_memory
from forebay.kvcache.transfer.data_listener import DataListener
from forebay.kvcache.transfer.source import SERVICE, BlockSource, add_block_source
from forebay.rpc.channel import MAX_MESSAGE_BYTES
from forebay.rpc.server import Server
from forebay.testing.plain_blocks import PlainBlocks
from scripts.benchmarks.answering import claim_stdout
from scripts.benchmarks.kv_blocks import LAYOUT

BLOCK_COUNT: Final = 128
BARE_METHOD: Final = "/bench/Pull"


def hashes() -> list[bytes]:
    """Names of the blocks."""
    return [index.to_bytes(16, "big") for index in range(BLOCK_COUNT)]


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def serve_socket(server: socket.socket, memory: memoryview) -> None:
    """Whoever connects says how many bytes a piece has and how many pieces it wants, and gets them."""
    while True:
        connection, _ = server.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            piece_bytes, count = map(int, connection.recv(64).split())
            pieces = len(memory) // piece_bytes
            for index in range(count):
                at = index % pieces * piece_bytes
                connection.sendall(memory[at : at + piece_bytes])


def add_stream(memory: memoryview, server: grpc.aio.Server) -> None:
    """A server stream of raw pieces, nothing else."""

    async def pull(request: bytes, context: Any) -> AsyncIterator[bytes]:
        piece_bytes, count = map(int, request.split())
        pieces = len(memory) // piece_bytes
        for index in range(count):
            at = index % pieces * piece_bytes
            yield bytes(memory[at : at + piece_bytes])

    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_stream_rpc_method_handler(pull)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", {"Pull": handler}),))


async def main() -> None:
    """Serves until stdin ends."""
    answers = claim_stdout()
    keep_freed_memory()  # as the KV-cache service does
    memory = bytearray(os.urandom(BLOCK_COUNT * LAYOUT.block_bytes))
    blocks = PlainBlocks(LAYOUT)
    for index, block_hash in enumerate(hashes()):
        at = index * LAYOUT.block_bytes
        blocks.seal(block_hash, memoryview(memory)[at : at + LAYOUT.block_bytes])
    bare = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve_socket, args=(bare, memoryview(memory)), daemon=True).start()
    listener, server = DataListener("127.0.0.1"), Server("127.0.0.1:0")
    listener.start()
    server.add(add_block_source, BlockSource(blocks, listener), SERVICE)
    node = await server.start()
    stream = grpc.aio.server(options=(("grpc.max_send_message_length", MAX_MESSAGE_BYTES),))
    add_stream(memoryview(memory), stream)
    stream_port = stream.add_insecure_port("127.0.0.1:0")
    await stream.start()
    addresses = {"bare": bare.getsockname()[1], "stream": f"127.0.0.1:{stream_port}", "node": node}
    print(json.dumps(addresses), file=answers, flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(cpu_s(), file=answers, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
