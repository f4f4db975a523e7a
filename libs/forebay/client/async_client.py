"""The client for `async` code. `Client` runs this very class, so there is only one of everything."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final, Self, Unpack

import grpc

from forebay import ports
from forebay.client.assembly import read_explanation
from forebay.client.completion import Completion, Explanation
from forebay.client.errors import sharpened
from forebay.client.fleet import Fleet, read_fleet
from forebay.client.request import Message, Prompt, RequestOptions, build_request
from forebay.client.stream import CompletionStream
from forebay.rpc.channel import open_channel
from forebay.rpc.status import from_rpc_error
from forebay.v1 import router_pb2, router_pb2_grpc

DEFAULT_TARGET: Final = ports.default_address(ports.ROUTER)
DEFAULT_TIMEOUT_S: Final = 600.0
WHOLE_GATHER_MS: Final = 1_000
"""Also the work that is lost with a worker, whose tokens of this time nobody has yet."""


class AsyncClient:
    """Asks one router. Connects at the first call and again by itself; safe for many tasks of one event loop.

    Every call has a deadline (`timeout_s`) and carries the caller's active OpenTelemetry trace, if there is one.
    Errors are the classes of `forebay.errors`, and those of `forebay.client.errors`.

        async with AsyncClient() as client:
            async for chunk in (stream := client.stream(messages=[{"role": "user", "content": "Hi"}])):
                print(chunk.text, end="")
            print(stream.completion.usage)
    """

    def __init__(self, target: str = DEFAULT_TARGET, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.target = target
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None

    async def generate(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Iterable[Message] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion:
        """The whole answer to a prompt (text without template, or token ids) or to chat messages."""
        return await self._whole(prompt, messages, options)

    async def chat(self, messages: Iterable[Message], **options: Unpack[RequestOptions]) -> Completion:
        """The whole answer to a conversation, rendered by the model's chat template."""
        return await self._whole(None, messages, options)

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Iterable[Message] | None = None,
        **options: Unpack[RequestOptions],
    ) -> CompletionStream:
        """The answer as it arrives. The call begins at the first iteration and ends with it."""
        request = build_request(prompt, messages, options)
        timeout_s = self._timeout_of(options)
        return CompletionStream(lambda: self._stub().Generate(request, timeout=timeout_s), self.target)

    async def cancel(self, request_id: str, *, timeout_s: float = 10.0) -> None:
        """Ends a running request. Raises UnknownRequestError when there is none of this id."""
        with self._translated():
            await self._stub().Cancel(router_pb2.CancelRequest(request_id=request_id), timeout=timeout_s)

    async def fleet(self, *, timeout_s: float = 10.0) -> Fleet:
        """The fleet as the router sees it."""
        with self._translated():
            return read_fleet(await self._stub().GetFleet(router_pb2.GetFleetRequest(), timeout=timeout_s))

    async def explain(self, request_id: str, *, timeout_s: float = 10.0) -> Explanation:
        """Why one of the router's last requests was planned as it was."""
        with self._translated():
            request = router_pb2.ExplainRequestRequest(request_id=request_id)
            return read_explanation(await self._stub().ExplainRequest(request, timeout=timeout_s))

    async def aclose(self) -> None:
        """Closes the connection; running streams end as cancelled. Idempotent."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _whole(
        self, prompt: Prompt | None, messages: Iterable[Message] | None, options: RequestOptions
    ) -> Completion:
        # Nobody reads along, so the text may come in few messages.
        return await self.stream(prompt, messages=messages, **({"gather_ms": WHOLE_GATHER_MS} | options)).finish()

    def _stub(self) -> "router_pb2_grpc.RouterServiceAsyncStub":
        # Opened late, because a channel belongs to the event loop that runs when it is made.
        if self._channel is None:
            self._channel = open_channel(self.target)
        stub: Any = router_pb2_grpc.RouterServiceStub(self._channel)
        return stub  # type: ignore[no-any-return]  # one runtime class serves both stub types

    def _timeout_of(self, options: Mapping[str, Any]) -> float:
        timeout_s = options.get("timeout_s")
        return self._timeout_s if timeout_s is None else float(timeout_s)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise sharpened(from_rpc_error(error), self.target, has_answered=False) from error
