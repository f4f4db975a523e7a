"""Blocks over a TCP connection of their own, straight between the two nodes' memories; gRPC carries all the rest.

The connection is offered by the source in a PullBlocks stream, which stays open: grants, errors, deadline and cancel
are its. When the stream ends, so does the connection, and the other way round.
"""

import asyncio
import socket
from typing import Final

from google.protobuf.message import DecodeError

from forebay.errors import (
    BadFrameError,
    Code,
    ForebayError,
    NoDataConnectionError,
    RemoteError,
)
from forebay.kv.block_transport import BlockTarget, PullRequest, SourceNode
from forebay.kv.pull_sink import PullSink
from forebay.kvcache.transfer.data_reader import DataReader, connect
from forebay.kvcache.transfer.peer_channels import PeerChannels
from forebay.kvcache.transfer.pull_call import PullCall
from forebay.rpc.deadline import ended_after
from forebay.rpc.status import translated
from forebay.tasks import end_task
from forebay.v1 import pull_pb2

LAST_WORD_S: Final = 3.0
"""How long, after the stream or the connection has ended, the other may take to end too and say why."""


class TcpBlockTransport:
    """A BlockTransport."""

    def __init__(self, channels: PeerChannels) -> None:
        self._channels = channels

    def reaches(self, source: SourceNode) -> bool:
        """Only the source knows, and is asked."""
        return True

    async def pull(self, request: PullRequest, sink: PullSink, target: BlockTarget, timeout_s: float) -> None:
        """As BlockTransport.pull."""
        host = request.source.address.rpartition(":")[0].strip("[]")
        with translated():
            async with (
                self._channels.to(request.source.address) as channel,
                ended_after(timeout_s, f"the pull took longer than {timeout_s:g} s"),
                PullCall(channel, request, sink, timeout_s, wants_data_connection=True) as call,
            ):
                connection = await _connected(call, host)
                reader = DataReader(connection, request.layout.block_bytes, sink, target, call.answer)
                try:
                    await _read_all(call, reader, sink)
                finally:
                    reader.close()


async def _connected(call: PullCall, host: str) -> socket.socket:
    """The connection that the source offers."""
    message = await anext(call.messages(), b"")
    try:
        offer = pull_pb2.PullBlocksResponse.FromString(message)
    except DecodeError:
        raise BadFrameError("the source's answer is no message of a pull") from None
    if not offer.HasField("data_connection"):
        raise BadFrameError("the source offers no data connection, and does not say why")
    try:
        return await connect(host, offer.data_connection.port, offer.data_connection.ticket)
    except OSError as error:  # TimeoutError is one
        raise NoDataConnectionError(
            f"port {offer.data_connection.port} of {host} cannot be reached: {error}"
        ) from error


async def _read_all(call: PullCall, reader: DataReader, sink: PullSink) -> None:
    """Returns when all is settled. Errors: the stream's, whose status says more than the end of a connection."""
    ending = asyncio.create_task(_ended(call))
    try:
        await asyncio.wait((ending, reader.over), return_when=asyncio.FIRST_COMPLETED)
        if sink.is_settled:
            call.finish()
        await asyncio.wait((ending, reader.over), timeout=LAST_WORD_S)
        if sink.is_settled:
            return
        if reader.over.done() and isinstance(reader.over.exception(), ForebayError):
            reader.over.result()
        if ending.done():
            ending.result()
        raise RemoteError(Code.UNAVAILABLE, "the data connection broke")
    finally:
        await end_task(ending)


async def _ended(call: PullCall) -> None:
    async for _ in call.messages():
        raise BadFrameError("the source sends over its stream what belongs on the data connection")
