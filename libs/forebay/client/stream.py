"""One answer as it arrives.

The call begins at the first iteration. However the iteration ends (the end, an error, `break`, `aclose`, a cancelled
task), the call is over afterwards and the router frees everything of the request. A router that is lost meanwhile is
followed by another, which says what is missing: the iteration pauses.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

import grpc

from forebay.client.assembly import Assembly
from forebay.client.completion import Chunk, Completion, Plan
from forebay.client.errors import BrokenAnswerError, sharpened
from forebay.client.persistence import Persistence, is_lost
from forebay.client.race import Race, Runner
from forebay.client.routers import Routers
from forebay.errors import DeadlineExceededError, ForebayError, RequestCancelledError
from forebay.rpc.status import from_rpc_error
from forebay.v1 import router_pb2

_CLOSED: Final = "the request was ended by closing its stream or its client"


class CompletionStream(AsyncIterator[Chunk]):
    """An async iterator of chunks; `completion` holds the result after the last one.

    Leaving `async for` early cancels the request. To look at single chunks use `anext(stream)`.
    """

    def __init__(
        self,
        request: router_pb2.GenerateRequest,
        routers: Routers,
        timeout_s: float,
        hedge_after_s: float | None = None,
    ) -> None:
        """hedge_after_s: if no token has come so long after the beginning, a second router is asked, too."""
        self._request = request
        self._routers = routers
        self._timeout_s = timeout_s
        self._hedge_after_s = hedge_after_s if len(routers.targets) > 1 else None
        self._race: Race | None = None
        self.is_hedged = False
        """Whether a second router was asked."""
        self._persistence = Persistence(len(routers.targets))
        self._order: list[str] = []  # in which routers are asked, again and again; the first is asked now
        self._began_s = 0.0
        self._call: Any = None  # both plain and intercepted calls; grpc's stubs know no common type with read()
        self._assembly = Assembly()
        self._is_closed = False
        self._client_closed = asyncio.Event()

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
    def token_ids(self) -> tuple[int, ...]:
        """The tokens received so far; also after a cancel or an error."""
        return self._assembly.token_ids

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
        """The plan; None until the router has planned the request. The last, if another router went on."""
        return self._assembly.plan

    @property
    def target(self) -> str | None:
        """Address of the router that is asked now; None before the first."""
        return self._order[0] if self._order else None

    @property
    def resume_count(self) -> int:
        """How often a router went on where another, or its connection, was lost."""
        return self._assembly.resume_count

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
            except asyncio.CancelledError as error:
                self.close()
                if _is_task_cancelled():
                    raise
                # The call was ended under us.
                raise RequestCancelledError(_CLOSED) from error
            except BaseException:
                self.close()
                raise
            if chunk is not None:
                return chunk
        raise StopAsyncIteration

    async def _read(self) -> Chunk | None:
        """Takes one event in; closes the stream at its end."""
        if self._call is None:
            self._open()
        try:
            event = await self._next_event()
        except grpc.RpcError as error:
            await self._go_on(from_rpc_error(error))
            return None
        if event is not grpc.aio.EOF:
            chunk = self._assembly.add(event, time.monotonic() - self._began_s)
            if chunk is not None and chunk.token_ids:
                self._persistence.progressed()
            return chunk
        self.close()
        if self._assembly.completion is None:
            raise BrokenAnswerError("the router ended the stream without a result")
        return None

    async def _next_event(self) -> Any:
        """Of the call; the first may be another router's, and is taken in already but for the last of it."""
        if self._hedge_after_s is None:
            return await self._call.read()
        hedge_at_s, self._hedge_after_s = self._began_s + self._hedge_after_s, None
        self._race = Race(Runner(self._order[0], self._call, self._assembly), self._began_s)
        try:
            return await self._race.first(max(0.0, hedge_at_s - time.monotonic()), self._second)
        finally:
            self._race.end()
            winner = self._race.winner
            if winner is not None:
                self._order.remove(winner.target)
                self._order.insert(0, winner.target)
                self._call, self._assembly = winner.call, winner.assembly

    def _second(self) -> Runner | None:
        """The same request at the next router."""
        left_s = self._left_s()
        if left_s <= 0:
            return None
        self.is_hedged = True
        call: Any = self._routers.stub(self._order[1]).Generate(self._request, timeout=left_s)
        return Runner(self._order[1], call, Assembly())

    def _open(self) -> None:
        """Asks the first router of the order."""
        if not self._order:
            self._began_s, self._order = time.monotonic(), self._routers.in_turn()
            self._client_closed = self._routers.closed
        left_s = self._left_s()
        if left_s <= 0:
            raise DeadlineExceededError("the deadline passed")
        self._call = self._routers.stub(self._order[0]).Generate(self._request, timeout=left_s)

    async def _go_on(self, error: ForebayError) -> None:
        """Goes on at the next router, where that may help. Raises what the caller is to hear where it does not."""
        has_begun = self._assembly.started is not None
        if is_lost(error):
            self._routers.note_lost(self._order[0])
        delay_s = self._persistence.delay_s(error, has_begun=has_begun)
        if delay_s is None:
            target = self._order[0] if has_begun else str(self._routers)
            raise sharpened(error, target, has_answered=has_begun)
        self._request = self._assembly.go_on(self._request)
        self._order = [*self._order[1:], self._order[0]]
        self._call = None
        await self._pause(min(delay_s, max(0.0, self._left_s())))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._client_closed.wait()
        if self._is_closed or self._client_closed.is_set():
            raise RequestCancelledError(_CLOSED)

    def _left_s(self) -> float:
        return self._timeout_s - (time.monotonic() - self._began_s)

    def close(self) -> None:
        """Ends the call if it is still running; call it on the event loop's thread. Idempotent."""
        self._is_closed = True
        if self._race is not None:
            self._race.end()
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
