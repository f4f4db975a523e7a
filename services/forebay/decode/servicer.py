"""DecodeService: one multiplexed stream per call."""

from collections.abc import AsyncIterator
from contextlib import aclosing

from forebay.decode.stream import DecodeStream
from forebay.errors import RETRY_AFTER_S, DrainingError
from forebay.v1 import decode_pb2, decode_pb2_grpc
from forebay.worker.request_check import ServedModel
from forebay.worker.sequence_runner import SequenceRunner


class DecodeServicer(decode_pb2_grpc.DecodeServiceServicer):
    """Serves the streams of one worker on one node."""

    def __init__(self, runner: SequenceRunner, model: ServedModel, node_id: str) -> None:
        self._runner = runner
        self._model = model
        self._node_id = node_id

    async def Decode(
        self, request_iterator: AsyncIterator[decode_pb2.DecodeRequest], context: object
    ) -> AsyncIterator[decode_pb2.DecodeResponse]:
        if self._runner.is_draining:
            raise DrainingError("the worker is draining", retry_after_s=RETRY_AFTER_S)
        stream = DecodeStream(self._runner, self._model, self._node_id)
        try:
            async with aclosing(stream.responses(request_iterator)) as responses:
                async for response in responses:
                    yield response
        finally:
            stream.close()
