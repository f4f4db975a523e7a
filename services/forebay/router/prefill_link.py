"""All Prefill calls of this router to one worker.

Knows which calls are under way, so that they end with the worker and the connection ends after them. A call knows its
own course.
"""

import asyncio
from typing import Any

from forebay.router.prefill_call import PrefillCall, PrefillSink
from forebay.v1 import prefill_pb2, prefill_pb2_grpc


class PrefillLink:
    """The calls to one worker."""

    def __init__(self, worker_id: str, channel: Any) -> None:
        self.worker_id = worker_id
        self._stub: prefill_pb2_grpc.PrefillServiceAsyncStub = prefill_pb2_grpc.PrefillServiceStub(channel)
        self._calls: dict[asyncio.Task[None], PrefillCall] = {}

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
