"""One answer as it arrives.

The call begins at the first iteration. However the iteration ends (the end, an error, `break`, `aclose`, a cancelled
task), the call is over afterwards and the router frees everything of the request.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self

import grpc

from forebay.client.assembly import Assembly
from forebay.client.completion import Chunk, Completion, Plan
from forebay.client.errors import BrokenAnswerError, sharpened
from forebay.errors import RequestCancelledError
from forebay.rpc.status import from_rpc_error
from forebay.v1 import router_pb2

OpenCall = Callable[[], grpc.aio.UnaryStreamCall[router_pb2.GenerateRequest, router_pb2.GenerateResponse]]


class CompletionStream(AsyncIterator[Chunk]):
    """An async iterator of chunks; `completion` holds the result after the last one.

    Leaving `async for` early cancels the request. To look at single chunks use `anext(stream)`.
    """

    def __init__(self, open_call: OpenCall, target: str) -> None:
        self._open_call = open_call
        self._target = target
        self._call: Any = None  # both plain and intercepted calls; grpc's stubs know no common type with read()
        self._assembly = Assembly()
        self._is_closed = False

    @property
    def completion(self) -> Completion:
        """The result. Raises RuntimeError as long as the stream has not come to its end."""
        if self._assembly.completion is None:
            raise RuntimeError("the stream has not come to its end; there is no completion yet")
        return self._assembly.completion

    @property
    def text(self) -> str:
        """The text received so far; also after a cancel or an error."""
        return self._assembly.text

    @property
    def request_id(self) -> str | None:
        """Request id; None until the router has planned the request."""
        return self._assembly.started.request_id if self._assembly.started else None

    @property
    def trace_id(self) -> str | None:
        """Trace id; None until the router has planned the request."""
        return self._assembly.started.trace_id if self._assembly.started else None

    @property
    def plan(self) -> Plan | None:
        """The plan; None until the router has planned the request."""
        return self._assembly.plan

    def __del__(self) -> None:
        if not self._is_closed:
            self.close()

    async def finish(self) -> Completion:
        """Reads on to the end and returns the result."""
        async for _ in self:
            pass
        return self.completion

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            while True:
                try:
                    chunk = await self.__anext__()
                except StopAsyncIteration:
                    return
                yield chunk
        finally:
            self.close()

    async def __anext__(self) -> Chunk:
        while not self._is_closed:
            try:
                chunk = await self._read()
            except grpc.RpcError as error:
                self.close()
                raise self._translated(error) from error
            except asyncio.CancelledError as error:
                self.close()
                if _is_task_cancelled():
                    raise
                # The call was ended under us.
                raise RequestCancelledError("the request was ended by closing its stream or its client") from error
            except BaseException:
                self.close()
                raise
            if chunk is not None:
                return chunk
        raise StopAsyncIteration

    async def _read(self) -> Chunk | None:
        """Takes one event in; closes the stream at its end."""
        if self._call is None:
            self._call = self._open_call()
        event = await self._call.read()
        if event is not grpc.aio.EOF:
            return self._assembly.add(event)
        self.close()
        if self._assembly.completion is None:
            raise BrokenAnswerError("the router ended the stream without a result")
        return None

    def _translated(self, error: grpc.RpcError) -> Exception:
        return sharpened(from_rpc_error(error), self._target, has_answered=self._assembly.started is not None)

    def close(self) -> None:
        """Ends the call if it is still running; call it on the event loop's thread. Idempotent."""
        self._is_closed = True
        if self._call is not None:
            self._call.cancel()

    async def aclose(self) -> None:
        """As `close`, for `contextlib.aclosing`."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _is_task_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
