"""The receiver's end of one PullBlocks stream: what it says to the source, and the source's messages as they come."""

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from grpc.aio import Channel

from forebay.kv.block_transport import PullRequest
from forebay.kv.pull_sink import PullSink, Settled
from forebay.kvcache.transfer.source import METHOD
from forebay.rpc.deadline import shorter
from forebay.telemetry import inject
from forebay.v1 import pull_pb2
from forebay.wire.pull_request import grant_to_proto, opening_to_proto


class PullCall:
    """One session of a pull. Leaving the block ends it, which releases the blocks at the source."""

    def __init__(
        self, channel: Channel, request: PullRequest, sink: PullSink, timeout_s: float, *, wants_data_connection: bool
    ) -> None:
        self._requests: asyncio.Queue[pull_pb2.PullBlocksRequest | None] = asyncio.Queue()
        first_block_index = sink.first_missing or 0
        sink.begin_session()
        self._requests.put_nowait(
            opening_to_proto(request, first_block_index, sink.window_bytes, wants_data_connection=wants_data_connection)
        )
        open_stream: Any = channel.stream_stream(
            METHOD, request_serializer=pull_pb2.PullBlocksRequest.SerializeToString, response_deserializer=None
        )
        self._call: Any = open_stream(
            self._sent(), timeout=shorter(timeout_s, timeout_s), metadata=tuple(inject().items())
        )

    async def __aenter__(self) -> "PullCall":
        """The call itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancels what is not over."""
        self._call.cancel()

    def messages(self) -> AsyncIterator[bytes]:
        """Serialised responses. Errors: grpc.RpcError."""
        messages: AsyncIterator[bytes] = aiter(self._call)
        return messages

    def answer(self, settled: Settled) -> None:
        """Tells the source what follows from a frame."""
        repeat = () if settled.repeat is None else (settled.repeat,)
        if settled.grant_bytes or repeat:
            self._requests.put_nowait(grant_to_proto(settled.grant_bytes, repeat))

    def finish(self) -> None:
        """Tells the source that nothing more is wanted."""
        self._requests.put_nowait(None)

    async def _sent(self) -> AsyncIterator[pull_pb2.PullBlocksRequest]:
        while (request := await self._requests.get()) is not None:
            yield request
