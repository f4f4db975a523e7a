"""The client for plain code: `AsyncClient` on one background thread, nothing more."""

from collections.abc import Iterable
from types import TracebackType
from typing import Self, Unpack

from forebay.client.async_client import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, AsyncClient
from forebay.client.blocking_stream import BlockingStream
from forebay.client.completion import Completion, Explanation
from forebay.client.fleet import Fleet
from forebay.client.loop_thread import LoopThread
from forebay.client.request import Message, Prompt, RequestOptions
from forebay.routing.role_advice import Recommendation


class Client:
    """Asks a router, or several in turn. Safe for many threads. Methods, options and errors are those of `AsyncClient`.

    with Client() as client:
        print(client.chat([{"role": "user", "content": "Hi"}], temperature=0).text)
    """

    def __init__(self, target: str | Iterable[str] = DEFAULT_TARGET, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._client = AsyncClient(target, timeout_s=timeout_s)
        self._loop = LoopThread()

    @property
    def target(self) -> str:
        """The routers' addresses, separated by commas."""
        return self._client.target

    def generate(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Iterable[Message] | None = None,
        **options: Unpack[RequestOptions],
    ) -> Completion:
        """See `AsyncClient.generate`."""
        return self._loop.run(lambda: self._client.generate(prompt, messages=messages, **options))

    def chat(self, messages: Iterable[Message], **options: Unpack[RequestOptions]) -> Completion:
        """See `AsyncClient.chat`."""
        return self._loop.run(lambda: self._client.chat(messages, **options))

    def stream(
        self,
        prompt: Prompt | None = None,
        *,
        messages: Iterable[Message] | None = None,
        **options: Unpack[RequestOptions],
    ) -> BlockingStream:
        """See `AsyncClient.stream`."""
        return BlockingStream(self._client.stream(prompt, messages=messages, **options), self._loop)

    def cancel(self, request_id: str, *, timeout_s: float = 10.0) -> None:
        """See `AsyncClient.cancel`."""
        self._loop.run(lambda: self._client.cancel(request_id, timeout_s=timeout_s))

    def fleet(self, *, timeout_s: float = 10.0) -> Fleet:
        """See `AsyncClient.fleet`."""
        return self._loop.run(lambda: self._client.fleet(timeout_s=timeout_s))

    def explain(self, request_id: str, *, timeout_s: float = 10.0) -> Explanation:
        """See `AsyncClient.explain`."""
        return self._loop.run(lambda: self._client.explain(request_id, timeout_s=timeout_s))

    def advise_roles(
        self, *, time_to_first_token_s: float = 0.5, time_per_output_token_s: float = 0.05, timeout_s: float = 10.0
    ) -> Recommendation:
        """See `AsyncClient.advise_roles`."""
        return self._loop.run(
            lambda: self._client.advise_roles(
                time_to_first_token_s=time_to_first_token_s,
                time_per_output_token_s=time_per_output_token_s,
                timeout_s=timeout_s,
            )
        )

    def drain(self, worker_id: str, *, force: bool = False, timeout_s: float = 10.0) -> int:
        """See `AsyncClient.drain`."""
        return self._loop.run(lambda: self._client.drain(worker_id, force=force, timeout_s=timeout_s))

    def close(self) -> None:
        """Closes the connection and ends the thread; running streams end as cancelled. Idempotent."""
        if self._loop.is_running:
            self._loop.run(self._client.aclose)
            self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
