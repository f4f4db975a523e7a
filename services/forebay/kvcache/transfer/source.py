"""PullBlocks at the sending node: one pull from its opening to its end, over this stream or a data connection."""

from __future__ import annotations  # grpc's context is generic for the type checker only

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc
from grpc.aio import ServicerContext

from forebay.errors import InvalidFieldError, LayoutMismatchError, NoDataConnectionError
from forebay.kv.block_transport import SealedBlocks
from forebay.kvcache.transfer.data_listener import DataListener
from forebay.kvcache.transfer.running_pull import RunningPull
from forebay.v1 import pull_pb2
from forebay.wire.pull_frame import frame_header
from forebay.wire.pull_request import Opening, checked_opening

SERVICE: Final = "forebay.v1.KvCacheService"
METHOD: Final = f"/{SERVICE}/PullBlocks"
MAX_PULL_S: Final = 3600.0


class BlockSource:
    """Serves pulls of this node's blocks. Pulls over streams are fair to each other because each has at most one frame
    on its way into gRPC, which sends streams in turn; those over data connections because `listener` is.
    """

    def __init__(self, blocks: SealedBlocks, listener: DataListener | None) -> None:
        """`listener`: None: bytes go over gRPC alone."""
        self._blocks = blocks
        self._listener = listener

    async def pull(
        self, requests: AsyncIterator[pull_pb2.PullBlocksRequest], context: ServicerContext[Any, Any]
    ) -> AsyncIterator[bytes]:
        """The messages of PullBlocksResponse, serialised. Closing it releases the blocks."""
        _check_deadline(context.time_remaining())
        opening = await self._opening(requests)
        async with self._blocks.fetched(opening.block_hashes):
            pull = RunningPull(self._blocks, opening)
        pull.start(requests)
        send = self._over_data_connection if opening.wants_data_connection else self._over_stream
        try:
            async with aclosing(send(pull)) as messages:
                async for message in messages:
                    yield message
        finally:
            await pull.close()

    async def _over_stream(self, pull: RunningPull) -> AsyncGenerator[bytes, None]:
        while (frame := await pull.next_frame()) is not None:
            # The one copy of the payload on our side: gRPC wants bytes.
            yield b"".join((frame_header(frame), pull.memory_of(frame)))

    async def _over_data_connection(self, pull: RunningPull) -> AsyncGenerator[bytes, None]:
        assert self._listener is not None
        with self._listener.lane(pull) as lane:
            offer = pull_pb2.DataConnection(port=self._listener.port, ticket=lane.ticket)
            yield pull_pb2.PullBlocksResponse(data_connection=offer).SerializeToString()
            await lane.until_over()

    async def _opening(self, requests: AsyncIterator[pull_pb2.PullBlocksRequest]) -> Opening:
        async for request in requests:
            opening = checked_opening(request)
            if opening.layout != self._blocks.layout:
                differences = opening.layout.differences(self._blocks.layout)
                raise LayoutMismatchError(f"KV is not laid out so here: {differences}", field="opening.layout")
            if opening.wants_data_connection and self._listener is None:
                raise NoDataConnectionError("this node sends KV over gRPC alone")
            return opening
        raise InvalidFieldError("the first request must open the pull", field="opening")


def add_block_source(source: BlockSource, server: grpc.aio.Server) -> None:
    """Has `source` serve PullBlocks, its responses not serialised again.

    To be called after the generated function that adds the whole service: the last registered handler of a method
    serves it.
    """
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
        source.pull, request_deserializer=pull_pb2.PullBlocksRequest.FromString, response_serializer=None
    )
    handlers = {"PullBlocks": handler}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


def _check_deadline(time_remaining_s: float | None) -> None:
    # Without one, a receiver that stops but stays connected would keep blocks from eviction for ever.
    if time_remaining_s is None or time_remaining_s > MAX_PULL_S:
        raise InvalidFieldError(f"a pull must have a deadline, of at most {MAX_PULL_S:g} s", field="deadline")
