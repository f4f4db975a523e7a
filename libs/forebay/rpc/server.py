"""One gRPC server of one service: its servicers, health, reflection, and a stop that lets calls finish."""

import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from forebay.errors import StartError
from forebay.rpc.channel import MAX_MESSAGE_BYTES
from forebay.rpc.interceptors import ServerContext

_log = logging.getLogger(__name__)

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a second server behind it
    ("grpc.keepalive_time_ms", 10_000),  # idle callers are asked too, and there may be many
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),  # ours ask each KEEPALIVE_S of `rpc.channel`
    ("grpc.keepalive_permit_without_calls", 1),
)


class Server:
    """Serves on `listen` ("HOST:PORT", port 0 = any) once started.

    `span_names` maps full methods ("/forebay.v1.RouterService/Generate") to span names, or to None for no span.
    `begins_traces`: calls that come without a trace begin one; for the front door.
    `max_call_s`: after so many seconds every call ends with DEADLINE_EXCEEDED; not for services with long links.
    `serves_as`: its id in the fleet; calls that are meant for another are refused.
    Health is NOT_SERVING until `set_serving(True)`.
    """

    def __init__(
        self,
        listen: str,
        span_names: Mapping[str, str | None] | None = None,
        *,
        begins_traces: bool = False,
        max_call_s: float | None = None,
        serves_as: str | None = None,
    ) -> None:
        self._listen = listen
        around_calls = ServerContext(
            span_names or {}, begins_traces=begins_traces, max_call_s=max_call_s, serves_as=serves_as
        )
        self._server = grpc.aio.server(interceptors=[around_calls], options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._service_names: list[str] = []

    def add(self, register: Callable[[Any, grpc.aio.Server], None], servicer: object, service_name: str) -> None:
        """Adds a servicer by its generated `add_…Servicer_to_server`; `service_name` is its full proto name."""
        register(servicer, self._server)
        self._service_names.append(service_name)

    async def start(self) -> str:
        """Binds and serves.

        Returns:
            The bound address, HOST:PORT.

        Raises:
            StartError: the address is taken or not ours.
        """
        reflection.enable_server_reflection(
            [*self._service_names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME],
            self._server,
        )
        host = self._listen.rpartition(":")[0]
        await self.set_serving(False)
        try:
            port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise StartError(_bind_failure(self._listen)) from error
        await self._server.start()
        _log.info("listening on %s:%d pid=%d", host, port, os.getpid())
        return f"{host}:{port}"

    async def set_serving(self, is_serving: bool) -> None:
        """Says to health checks, for the server as a whole and each service, whether new work is welcome."""
        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._service_names):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls at once; running ones are cancelled after `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


def _bind_failure(listen: str) -> str:
    """One line that says why the address cannot be had."""
    host, _, port = listen.rpartition(":")
    try:
        with socket.create_server((host, int(port))):
            pass
    except (OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"cannot listen on {listen}: {reason}; choose another address with --listen"
    return f"cannot listen on {listen}; choose another address with --listen"
