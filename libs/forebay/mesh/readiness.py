"""Whether a service answers and welcomes work: gRPC health for ours, the greeting for NATS."""

import asyncio
import json
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
)
_RETRY_INTERVAL_S: Final = 0.05
_CHECK_TIMEOUT_S: Final = 2.0
_SERVING: Final = health_pb2.HealthCheckResponse.SERVING


async def wait_until_ready(role: str, address: str) -> None:
    """Returns when the service welcomes work; has no deadline of its own."""
    while True:
        if await health(role, address) == "serving":
            return
        await asyncio.sleep(_RETRY_INTERVAL_S)


async def health(role: str, address: str) -> str:
    """ "serving", "not serving", or "unreachable"; answers within two seconds."""
    if role == "nats":
        return "serving" if await _greets(address) else "unreachable"
    async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its type stubs know no async methods
        try:
            response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=_CHECK_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return "unreachable"
        return "serving" if response.status == _SERVING else "not serving"


async def _greets(address: str) -> bool:
    """Whether a NATS server with JetStream says INFO."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                greeting = await reader.readline()
            finally:
                writer.close()
        return greeting.startswith(b"INFO ") and json.loads(greeting[5:]).get("jetstream") is True
    except (OSError, TimeoutError, ValueError):
        return False
