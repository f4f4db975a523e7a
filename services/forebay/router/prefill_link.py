"""All Prefill calls of this router to one worker.

Knows which calls are under way, so that they end with the worker and the connection ends after them, and whether the
worker can be reached. A call knows its own course.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from forebay.router.prefill_call import PrefillCall, PrefillSink
from forebay.v1 import prefill_pb2, prefill_pb2_grpc


class PrefillLink:
    """The calls to one worker. `is_usable` until the first failure to connect, and again while it is connected."""

    def __init__(self, worker_id: str, channel: Any, on_state: Callable[[], None]) -> None:
        self.worker_id = worker_id
        self.is_usable = True
        self._channel = channel
        self._on_state = on_state
        self._watching: asyncio.Task[None] | None = None
        self._stub: prefill_pb2_grpc.PrefillServiceAsyncStub = prefill_pb2_grpc.PrefillServiceStub(channel)
        self._calls: dict[asyncio.Task[None], PrefillCall] = {}

    def open(self) -> None:
        """Connects in the background, and again whenever the connection breaks."""
        self._watching = asyncio.get_running_loop().create_task(self._watch(), name=f"prefill-{self.worker_id}")

    def call(self, request: prefill_pb2.PrefillRequest, sink: PrefillSink) -> PrefillCall:
        """Sends a prompt."""
        call = PrefillCall(self.worker_id, self._stub, sink)
        task = call.start(request)
        self._calls[task] = call
        task.add_done_callback(self._calls.pop)
        return call

    def lose(self) -> None:
        """The worker left the fleet without a word: every call to it fails at once."""
        for call in list(self._calls.values()):
            call.lose()

    async def wait_idle(self) -> None:
        """Returns once no call is under way."""
        while self._calls:
            await asyncio.wait(self._calls)

    def close(self) -> None:
        """Its connection is no longer watched; to be called before the channel is closed. Idempotent."""
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        """A worker that is gone is not connected; one that was never connected is not known to be gone."""
        was_connected = False
        while True:
            state = self._channel.get_state(try_to_connect=True)
            is_connected = state is grpc.ChannelConnectivity.READY
            is_failed = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
            was_connected = was_connected or is_connected or is_failed
            if (is_usable := is_connected or not was_connected) != self.is_usable:
                self.is_usable = is_usable
                self._on_state()
            await self._channel.wait_for_state_change(state)
