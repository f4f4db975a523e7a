"""A decode service on a real server, with a real KV-cache service and a fake engine."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from forebay.decode.servicer import DecodeServicer
from forebay.testing.attached_worker import MODEL, attached_worker, served
from forebay.testing.decode_rig import Link, Rig
from forebay.v1 import decode_pb2_grpc

Start = Callable[..., Any]


@pytest.fixture
def start(start_kvcache: Start) -> Start:
    @asynccontextmanager
    async def _start(blocks: int = 64, host_blocks: int = 0, lease_s: float = 60, **options: Any) -> AsyncIterator[Rig]:
        async with (
            start_kvcache(blocks=blocks, host_blocks=host_blocks, lease_s=lease_s) as kvcache,
            attached_worker(kvcache.address, **options) as worker,
        ):
            servicer = DecodeServicer(worker.runner, MODEL, kvcache.node_id)
            register = decode_pb2_grpc.add_DecodeServiceServicer_to_server
            async with served(register, servicer, "forebay.v1.DecodeService") as channel:
                stub = decode_pb2_grpc.DecodeServiceStub(channel)
                link = Link(stub.Decode())
                yield Rig(kvcache, worker, stub, link)
                link.call.cancel()
                await asyncio.gather(link.task, return_exceptions=True)

    return _start
