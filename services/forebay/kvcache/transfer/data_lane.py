"""The sending end of one data connection, and the pump that lets all of them send in turn.

All on the event loop: a send that cannot block takes as long as copying one frame into the kernel, some 0.15 ms, and
between two of them everybody else of this process has a turn.
"""

import asyncio
import secrets
import socket
from collections.abc import Callable

from forebay.errors import ForebayError, NoDataConnectionError
from forebay.kv.pull_turns import PullTurns
from forebay.kvcache.transfer.data_frame import TICKET_BYTES, header_of
from forebay.kvcache.transfer.running_pull import RunningPull


class DataLane:
    """Sends one pull's frames over the connection that comes with its ticket."""

    def __init__(self, pull: RunningPull, wait: Callable[["DataLane"], None]) -> None:
        """`wait` puts the lane in line for its next turn."""
        self.ticket = secrets.token_bytes(TICKET_BYTES)
        self._pull = pull
        self._wait = wait
        self._socket: socket.socket | None = None
        self._unsent: list[memoryview] = []
        self._is_blocked = False
        self._has_changed = asyncio.Event()
        pull.on_change = self._wake

    def connect(self, connection: socket.socket) -> None:
        """The receiver is there."""
        self._socket = connection
        self._wake()

    def close(self) -> None:
        """Ends the connection; what the kernel has taken still arrives."""
        self._unblock()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._unsent.clear()

    async def until_over(self) -> None:
        """Waits until the receiver has all it wants. Errors: why it will not get it, once all else is sent."""
        while not self._is_over():
            self._has_changed.clear()
            await self._has_changed.wait()

    def send_some(self) -> int | None:
        """Sends what the kernel takes of one frame; returns its bytes. None: nothing to send now."""
        if self._socket is None or self._is_blocked or not self._fill():
            return None
        try:
            sent_bytes = self._socket.sendmsg(self._unsent)
        except BlockingIOError:
            self._is_blocked = True
            asyncio.get_running_loop().add_writer(self._socket, self._unblock)
            return None
        except OSError as error:
            self._unsent.clear()
            self._pull.fail(NoDataConnectionError(f"the data connection broke: {error.strerror}"))
            return None
        self._forget(sent_bytes)
        return sent_bytes

    def _is_over(self) -> bool:
        try:
            return self._pull.is_over()
        except ForebayError:
            if not self._unsent:
                raise
            return False

    def _fill(self) -> bool:
        if not self._unsent and (frame := self._pull.take_frame()) is not None:
            self._unsent = [memoryview(header_of(frame)), self._pull.memory_of(frame)]
        return bool(self._unsent)

    def _forget(self, sent_bytes: int) -> None:
        while self._unsent and sent_bytes >= len(self._unsent[0]):
            sent_bytes -= len(self._unsent.pop(0))
        if self._unsent:
            self._unsent[0] = self._unsent[0][sent_bytes:]
        else:
            self._has_changed.set()

    def _wake(self) -> None:
        self._has_changed.set()
        self._wait(self)

    def _unblock(self) -> None:
        if self._is_blocked and self._socket is not None:
            asyncio.get_running_loop().remove_writer(self._socket)
        self._is_blocked = False
        self._wake()


class LanePump:
    """One send per round of the event loop, by whose turn it is."""

    def __init__(self) -> None:
        self._turns: PullTurns[DataLane] = PullTurns()
        self._is_running = False

    def wait(self, lane: DataLane) -> None:
        """The lane may have something to send."""
        self._turns.wait(lane)
        if not self._is_running:
            self._is_running = True
            asyncio.get_running_loop().call_soon(self._round)

    def leave(self, lane: DataLane) -> None:
        """The lane is closed."""
        self._turns.leave(lane)

    def _round(self) -> None:
        lane = self._turns.next()
        if lane is None:
            self._is_running = False
            return
        sent_bytes = lane.send_some()
        if sent_bytes is None:
            self._turns.leave(lane)
        else:
            self._turns.sent(lane, sent_bytes)
        asyncio.get_running_loop().call_soon(self._round)
