"""One answer as it arrives, for plain code: a `CompletionStream` read from a background loop."""

from collections.abc import Iterator
from types import TracebackType
from typing import Self

from forebay.client.completion import Chunk, Completion, Plan
from forebay.client.loop_thread import LoopThread
from forebay.client.stream import CompletionStream


class BlockingStream(Iterator[Chunk]):
    """An iterator of chunks; `completion` holds the result after the last one.

    Leaving `for` early cancels the request. To look at single chunks use `next(stream)`.
    """

    def __init__(self, stream: CompletionStream, loop: LoopThread) -> None:
        self._stream = stream
        self._loop = loop

    def __del__(self) -> None:
        self.close()  # on the loop's thread, which the call belongs to

    @property
    def completion(self) -> Completion:
        """The result. Raises RuntimeError as long as the stream has not come to its end."""
        return self._stream.completion

    @property
    def text(self) -> str:
        """The text received so far; also after a cancel or an error."""
        return self._stream.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens received so far; also after a cancel or an error."""
        return self._stream.token_ids

    @property
    def request_id(self) -> str | None:
        """Request id; None until the router has planned the request."""
        return self._stream.request_id

    @property
    def trace_id(self) -> str | None:
        """Trace id; None until the router has planned the request."""
        return self._stream.trace_id

    @property
    def plan(self) -> Plan | None:
        """The plan; None until the router has planned the request."""
        return self._stream.plan

    @property
    def target(self) -> str | None:
        """Address of the router that is asked now; None before the first."""
        return self._stream.target

    @property
    def resume_count(self) -> int:
        """How often a router went on where another, or its connection, was lost."""
        return self._stream.resume_count

    def __iter__(self) -> Iterator[Chunk]:
        try:
            while True:
                try:
                    chunk = next(self)
                except StopIteration:
                    return
                yield chunk
        finally:
            self.close()

    def __next__(self) -> Chunk:
        chunk = self._loop.run(self._next_or_none)
        if chunk is None:
            raise StopIteration
        return chunk

    async def _next_or_none(self) -> Chunk | None:
        # StopAsyncIteration cannot leave a coroutine's future.
        return await anext(self._stream, None)

    def close(self) -> None:
        """Ends the call if it is still running. Idempotent; does not wait."""
        self._loop.post(self._stream.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
