"""One Prefill call: the first token, then the manifest.

Knows when the sequence is whose: until the manifest is sent a cancel makes the prefill worker release it; from then on
only the next owner can. So an abandoned call is still read for a moment, for what may have arrived already, and once
its first token is there it is read to its manifest.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from forebay.errors import RETRY_AFTER_S, Code, ForebayError, RemoteError, WorkerLostError
from forebay.rpc.addressee import addressed_to
from forebay.rpc.status import translated
from forebay.v1 import common_pb2, prefill_pb2, prefill_pb2_grpc

ARRIVED_TIMEOUT_S: Final = 0.02  # what has arrived is read within some turns of a busy loop
HAND_OVER_TIMEOUT_S: Final = 0.4  # sealing takes milliseconds; all must be free within a second

_LOST_CODES: Final = frozenset({Code.UNAVAILABLE, Code.CANCELLED, Code.UNKNOWN})


class PrefillSink(Protocol):
    """Who waits for the first token. Called on the loop; must not block."""

    def on_begun(self) -> None:
        """The sequence can be pulled while it is computed. Told only where that was asked for."""
        ...

    def on_first_token(self, first: prefill_pb2.FirstToken) -> None:
        """The first token is known."""
        ...

    def on_manifest(self, manifest: common_pb2.Manifest) -> None:
        """The sequence may be taken over."""
        ...

    def on_lost(self, error: ForebayError) -> None:
        """The call failed; its worker holds nothing."""
        ...


class PrefillCall:
    """A call under way. `abandon` ends it, whatever its state, and leaves nothing leased."""

    def __init__(self, worker_id: str, stub: "prefill_pb2_grpc.PrefillServiceAsyncStub", sink: PrefillSink) -> None:
        self._worker_id = worker_id
        self._stub = stub
        self._sink: PrefillSink | None = sink
        self._has_token = False
        self._is_complete = False  # nothing more has to come
        self._release: Callable[[common_pb2.Manifest], None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._cancelling: asyncio.TimerHandle | None = None

    def start(self, request: prefill_pb2.PrefillRequest) -> "asyncio.Task[None]":
        """Sends the request. Returns the task that ends with the call."""
        self._task = asyncio.get_running_loop().create_task(self._run(request), name="prefill-call")
        return self._task

    def abandon(self, release: Callable[[common_pb2.Manifest], None]) -> None:
        """Ends the call. `release` is called with the manifest if the sequence has been handed over. Idempotent."""
        self._sink = None
        if self._task is None or self._task.done() or self._is_complete or self._release is not None:
            return
        self._release = release
        self._cancel_after(HAND_OVER_TIMEOUT_S if self._has_token else ARRIVED_TIMEOUT_S)

    def lose(self) -> None:
        """The worker is gone without a word: ends the call, and fails it unless nothing more had to come."""
        sink, self._sink = self._sink, None
        if self._task is not None:
            self._task.cancel()
        if sink is not None and not self._is_complete:
            sink.on_lost(self._lost("it is silent"))

    def _cancel_after(self, seconds: float) -> None:
        assert self._task is not None
        if self._cancelling is not None:
            self._cancelling.cancel()
        self._cancelling = asyncio.get_running_loop().call_later(seconds, self._task.cancel)

    async def _run(self, request: prefill_pb2.PrefillRequest) -> None:
        call: Any = self._stub.Prefill(request, metadata=addressed_to(self._worker_id))
        try:
            with translated():
                async for response in call:
                    self._on_response(response)
            if not self._is_complete:
                raise RemoteError(Code.UNAVAILABLE, "the answer ended without a manifest")
        except ForebayError as error:
            if self._sink is not None:
                self._sink.on_lost(self._attributed(error))
        finally:
            call.cancel()
            if self._cancelling is not None:
                self._cancelling.cancel()

    def _on_response(self, response: prefill_pb2.PrefillResponse) -> None:
        if response.HasField("begun"):
            if self._sink is not None:
                self._sink.on_begun()
            return
        if response.HasField("first_token"):
            self._has_token = True
            self._is_complete = bool(response.first_token.finish_reason)
            if self._sink is not None:
                self._sink.on_first_token(response.first_token)
            elif not self._is_complete:
                self._cancel_after(HAND_OVER_TIMEOUT_S)
            return
        self._is_complete = True
        if self._sink is not None:
            self._sink.on_manifest(response.manifest)
        elif self._release is not None:
            self._release(response.manifest)

    def _attributed(self, error: ForebayError) -> ForebayError:
        if not isinstance(error, RemoteError) or error.code not in _LOST_CODES:
            return error
        return self._lost(error.message)

    def _lost(self, why: str) -> ForebayError:
        message = f"prefill worker {self._worker_id} was lost: {why}"
        return WorkerLostError(message, retry_after_s=RETRY_AFTER_S, worker_id=self._worker_id)
