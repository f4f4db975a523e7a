"""Where data connections come in: each shows the ticket of a pull that waits for it, or is closed.

A ticket is random, was handed out over gRPC, and is good once. Listens on the service's own host only.
"""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from forebay.errors import StartError
from forebay.kvcache.transfer.data_frame import TICKET_BYTES
from forebay.kvcache.transfer.data_lane import DataLane, LanePump
from forebay.kvcache.transfer.running_pull import RunningPull
from forebay.tasks import end_task

_log = logging.getLogger(__name__)

TICKET_TIMEOUT_S: Final = 5.0
MAX_STRANGERS: Final = 64
"""Connections without a ticket yet; more are closed."""
ACCEPT_AGAIN_S: Final = 0.5


class DataListener:
    """Listens from `start` to `close`."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._pump = LanePump()
        self._waiting: dict[bytes, DataLane] = {}
        self._strangers: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None
        self.port = 0

    def start(self) -> None:
        """Takes a free port. Errors: StartError when the host is not ours."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            server = socket.create_server((self._host, 0), family=family, backlog=MAX_STRANGERS)
        except OSError as error:
            raise StartError(f"cannot listen on {self._host} for KV from other nodes: {error.strerror}") from error
        server.setblocking(False)
        self.port = server.getsockname()[1]
        self._accepting = asyncio.create_task(self._accept(server))

    async def close(self) -> None:
        """Stops listening; lanes end with their pulls."""
        for task in (*self._strangers, self._accepting):
            if task is not None:
                await end_task(task)

    @contextmanager
    def lane(self, pull: RunningPull) -> Iterator[DataLane]:
        """Inside the block the pull's frames go to whoever shows the lane's ticket."""
        lane = DataLane(pull, self._pump.wait)
        self._waiting[lane.ticket] = lane
        try:
            yield lane
        finally:
            self._waiting.pop(lane.ticket, None)
            lane.close()
            self._pump.leave(lane)

    async def _accept(self, server: socket.socket) -> None:
        with server:
            while True:
                try:
                    connection, _ = await asyncio.get_running_loop().sock_accept(server)
                except OSError as error:
                    _log.warning("cannot accept a data connection: %s", error.strerror)
                    await asyncio.sleep(ACCEPT_AGAIN_S)  # out of files, most likely; nothing tells when there are more
                    continue
                self._receive(connection)

    def _receive(self, connection: socket.socket) -> None:
        if len(self._strangers) >= MAX_STRANGERS:
            connection.close()
            return
        task = asyncio.create_task(self._admit(connection))
        self._strangers.add(task)
        task.add_done_callback(self._strangers.discard)

    async def _admit(self, connection: socket.socket) -> None:
        lane = None
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(TICKET_TIMEOUT_S):
                lane = self._waiting.pop(await _read_ticket(connection), None)
        except (OSError, TimeoutError):
            return
        finally:
            if lane is None:
                connection.close()
        if lane is not None:
            lane.connect(connection)


async def _read_ticket(connection: socket.socket) -> bytes:
    ticket = b""
    while len(ticket) < TICKET_BYTES:
        read = await asyncio.get_running_loop().sock_recv(connection, TICKET_BYTES - len(ticket))
        if not read:
            break
        ticket += read
    return ticket
