"""A long-lived bidirectional gRPC stream to one service, reopened for ever.

Knows when to open, write, read and reopen; its end (`LinkEnd`) knows what the messages mean. One task reads, one
writes, whatever the number of requests that share the link.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc

from forebay.errors import ForebayError
from forebay.rpc.status import from_rpc_error

_log = logging.getLogger(__name__)

MIN_BACKOFF_S: Final = 0.1
MAX_BACKOFF_S: Final = 1.0

Q = TypeVar("Q")
R = TypeVar("R")
Q_co = TypeVar("Q_co", covariant=True)
R_contra = TypeVar("R_contra", contravariant=True)


class LinkEnd(Protocol[Q_co, R_contra]):
    """What a link carries."""

    def take(self) -> Q_co | None:
        """The next message to write; None when there is none now."""
        ...

    def on_response(self, response: R_contra) -> None:
        """A message arrived."""
        ...

    def on_broken(self, error: ForebayError) -> None:
        """The stream ended or could not be opened; the other side has forgotten all that was on it."""
        ...


class Link(Generic[Q, R]):
    """Opens at `start`. `is_usable` until the first failure, and again while the stream is open."""

    def __init__(
        self, name: str, open_call: Callable[[], Any], end: LinkEnd[Q, R], on_state: Callable[[], None]
    ) -> None:
        self._name = name
        self._open_call = open_call
        self._end = end
        self._on_state = on_state
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.is_usable = True
        self.is_closed = False  # for good: nothing will be written or heard any more

    def start(self) -> None:
        """Opens the stream in the background, and again whenever it breaks. Needs a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"link-{self._name}")

    def wake(self) -> None:
        """There is something to write."""
        self._wake.set()

    def close(self) -> None:
        """Ends the stream. Idempotent."""
        self.is_closed = True
        if self._task is not None:
            self._task.cancel()

    async def wait_closed(self) -> None:
        """Returns once `close` has taken effect."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff_s = MIN_BACKOFF_S
        while True:
            try:
                was_open = await self._carry()
            except grpc.RpcError as error:
                was_open = self.is_usable
                self._break(from_rpc_error(error))
            except Exception:
                _log.exception("link %s: a message that nobody can make sense of", self._name)
                was_open = False
                self._break(ForebayError("the other side broke the contract"))
            backoff_s = MIN_BACKOFF_S if was_open else min(MAX_BACKOFF_S, backoff_s * 2)
            await asyncio.sleep(backoff_s)

    async def _carry(self) -> bool:
        """One stream from opening to end."""
        call = self._open_call()
        writer: asyncio.Task[None] | None = None
        try:
            await call.wait_for_connection()
            self._set_usable(True)
            writer = asyncio.get_running_loop().create_task(self._write(call), name=f"link-{self._name}-writer")
            while (response := await call.read()) is not grpc.aio.EOF:
                self._end.on_response(response)
            self._break(ForebayError("the stream was ended by the other side"))
        finally:
            if writer is not None:
                writer.cancel()
            call.cancel()
        return True

    async def _write(self, call: Any) -> None:
        while True:
            self._wake.clear()
            while (message := self._end.take()) is not None:
                try:
                    await call.write(message)
                except (grpc.RpcError, asyncio.InvalidStateError):
                    return  # the reader learns why
            await self._wake.wait()

    def _break(self, error: ForebayError) -> None:
        if self.is_usable:
            _log.warning("link %s broke: %s", self._name, error.message)
        self._set_usable(False)
        self._end.on_broken(error)

    def _set_usable(self, is_usable: bool) -> None:
        if is_usable != self.is_usable:
            self.is_usable = is_usable
            self._on_state()
