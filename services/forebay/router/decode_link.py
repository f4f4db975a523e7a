"""All sequences of this router on one decode worker, over one stream.

Knows which sequence belongs to whom, not what a request is. When the stream breaks, every sequence on it fails:
the worker has released them.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from forebay.errors import RETRY_AFTER_S, DrainingError, ForebayError, WorkerLostError
from forebay.router.link import Link
from forebay.rpc.addressee import addressed_to
from forebay.v1 import decode_pb2, decode_pb2_grpc


class SequenceSink(Protocol):
    """Who waits for a sequence's tokens. Called on the loop; must not block."""

    def on_output(self, output: decode_pb2.SequenceOutput) -> None:
        """News; the last output has a finish reason or an error."""
        ...

    def on_lost(self, error: ForebayError) -> None:
        """There will be no more news."""
        ...


class DecodeLink:
    """The stream to one worker."""

    def __init__(self, worker_id: str, channel: Any, on_state: Callable[[], None]) -> None:
        self.worker_id = worker_id
        stub = decode_pb2_grpc.DecodeServiceStub(channel)
        self._commands: deque[decode_pb2.DecodeRequest] = deque()
        self._sinks: dict[str, SequenceSink | None] = {}  # None: nobody listens any more
        self._is_retired = False
        self._link = Link[decode_pb2.DecodeRequest, decode_pb2.DecodeResponse](
            f"decode-{worker_id}", lambda: stub.Decode(metadata=addressed_to(worker_id)), self, on_state
        )

    @property
    def is_usable(self) -> bool:
        """Whether a sequence started now has a chance."""
        return self._link.is_usable and not self._is_retired

    @property
    def sequence_count(self) -> int:
        """Sequences on the stream."""
        return len(self._sinks)

    def open(self) -> None:
        """Opens the stream in the background."""
        self._link.start()

    def start(self, message: decode_pb2.StartSequence, sink: SequenceSink) -> None:
        """Begins a sequence. On a link that has ended it is lost, which its sink hears on the loop's next turn."""
        if self._link.is_closed:
            asyncio.get_running_loop().call_soon(sink.on_lost, self._lost("it has left the fleet"))
            return
        self._sinks[message.request_id] = sink
        self._send(decode_pb2.DecodeRequest(start=message))

    def start_abandoned(self, message: decode_pb2.StartSequence) -> None:
        """Begins a sequence only to end it: its blocks are released by their new owner. Nothing on an ended link."""
        if self._link.is_closed:
            return
        self._sinks[message.request_id] = None
        self._send(decode_pb2.DecodeRequest(start=message))
        self.cancel(message.request_id)

    def has(self, request_id: str) -> bool:
        """Whether the sequence is on the stream."""
        return request_id in self._sinks

    def cancel(self, request_id: str) -> None:
        """Ends a sequence early; its sink still hears the last output. Unknown ids are ignored."""
        if request_id in self._sinks:
            self._send(decode_pb2.DecodeRequest(cancel=decode_pb2.CancelSequence(request_id=request_id)))

    def abandon(self, request_id: str) -> None:
        """Ends a sequence early, and drops what it still says. Unknown ids are ignored."""
        if self._sinks.get(request_id) is not None:
            self._sinks[request_id] = None
            self.cancel(request_id)

    def retire(self) -> None:
        """The worker left the fleet in good order: ends the stream as soon as no sequence is on it."""
        self._is_retired = True
        self._close_if_done()

    def lose(self) -> None:
        """The worker left the fleet without a word: ends the stream at once; every sequence on it fails."""
        self._is_retired = True
        self._link.close()
        self.on_broken(ForebayError("it is silent"))

    async def wait_closed(self) -> None:
        """Returns once a retired link has ended its stream."""
        await self._link.wait_closed()

    async def close(self) -> None:
        """Ends the stream, and with it every sequence on it."""
        self._link.close()
        await self._link.wait_closed()
        self.on_broken(ForebayError("the router is stopping"))

    def take(self) -> decode_pb2.DecodeRequest | None:
        """The next command to write."""
        return self._commands.popleft() if self._commands else None

    def on_response(self, response: decode_pb2.DecodeResponse) -> None:
        """News of one step."""
        for output in response.outputs:
            sink = self._sinks.get(output.request_id)
            if output.finish_reason or output.HasField("error"):
                self._sinks.pop(output.request_id, None)
            if sink is not None:
                sink.on_output(output)
        self._close_if_done()

    def on_broken(self, error: ForebayError) -> None:
        """Every sequence is lost."""
        sinks, self._sinks = self._sinks, {}
        self._commands.clear()
        lost = error if isinstance(error, DrainingError) else self._lost(error.message)
        for sink in sinks.values():
            if sink is not None:
                sink.on_lost(lost)
        self._close_if_done()

    def _lost(self, why: str) -> ForebayError:
        message = f"decode worker {self.worker_id} was lost: {why}"
        return WorkerLostError(message, retry_after_s=RETRY_AFTER_S, worker_id=self.worker_id)

    def _send(self, command: decode_pb2.DecodeRequest) -> None:
        self._commands.append(command)
        self._link.wake()

    def _close_if_done(self) -> None:
        if self._is_retired and not self._sinks:
            self._link.close()
