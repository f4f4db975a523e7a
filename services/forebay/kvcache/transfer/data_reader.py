"""The receiving end of one data connection: from the socket straight into the blocks' memory.

On the event loop: a read that cannot block takes as long as copying at most one frame out of the kernel.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from xxhash import xxh3_128_digest

from forebay.errors import ForebayError
from forebay.kv.block_transport import BlockTarget
from forebay.kv.pull_frame import Frame
from forebay.kv.pull_sink import PullSink, Settled
from forebay.kvcache.transfer.data_frame import HEADER, frame_of

CONNECT_TIMEOUT_S: Final = 2.0


class DataReader:
    """Reads until all is settled, the source closes, or something is wrong; after `close` nothing is written.

    `over` is done then; its error is an OSError, a BadFrameError, or the target's.
    """

    def __init__(
        self,
        connection: socket.socket,
        block_bytes: int,
        sink: PullSink,
        target: BlockTarget,
        answer: Callable[[Settled], None],
    ) -> None:
        self._connection = connection
        self._block_bytes = block_bytes
        self._sink = sink
        self._target = target
        self._answer = answer
        self._header = bytearray(HEADER.size)
        self._unread = memoryview(self._header)
        self._frame: Frame | None = None  # whose bytes are being read; None: its header is
        self._is_written = False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(connection, self._on_readable)

    def close(self) -> None:
        """Ends the connection."""
        asyncio.get_running_loop().remove_reader(self._connection)
        self._connection.close()
        if not self.over.done():
            self.over.cancel()
        elif not self.over.cancelled():
            self.over.exception()  # seen

    def _on_readable(self) -> None:
        try:
            if self._read():
                self._end(None)
        except BlockingIOError:
            return
        except (OSError, ForebayError) as error:
            self._end(error)

    def _read(self) -> bool:
        """Reads at most one frame. Returns whether that was all."""
        while True:
            read_bytes = self._connection.recv_into(self._unread)
            if read_bytes == 0:
                return True
            self._unread = self._unread[read_bytes:]
            if len(self._unread):
                continue
            if self._frame is None:
                self._begin(frame_of(self._header, self._block_bytes))
                continue
            self._settle(self._frame)
            return self._sink.is_settled

    def _begin(self, frame: Frame) -> None:
        self._is_written = self._sink.place(frame)
        self._frame = frame
        if self._is_written:
            self._unread = self._target.memory(frame.block_index)[frame.offset_bytes : frame.end_bytes]
        else:
            self._unread = memoryview(bytearray(frame.length_bytes))

    def _settle(self, frame: Frame) -> None:
        self._frame, self._unread = None, memoryview(self._header)
        settled = self._sink.settle(frame, self._is_written, lambda index: xxh3_128_digest(self._target.memory(index)))
        if settled.arrived is not None:
            self._target.arrived(settled.arrived)
        self._answer(settled)

    def _end(self, error: Exception | None) -> None:
        asyncio.get_running_loop().remove_reader(self._connection)
        if self.over.done():
            return
        if error is None:
            self.over.set_result(None)
        else:
            self.over.set_exception(error)


async def connect(host: str, port: int, ticket: bytes) -> socket.socket:
    """A data connection that has shown its ticket. Errors: OSError, TimeoutError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_TIMEOUT_S):
        family, kind, protocol, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, address)
            await loop.sock_sendall(connection, ticket)
        except BaseException:
            connection.close()
            raise
    return connection
