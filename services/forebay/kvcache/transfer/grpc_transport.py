"""Blocks over gRPC alone: works wherever services reach each other. Costs three more copies than a data connection."""

from xxhash import xxh3_128_digest

from forebay.errors import BadFrameError
from forebay.kv.block_transport import BlockTarget, PullRequest, SourceNode
from forebay.kv.pull_sink import PullSink
from forebay.kvcache.transfer.peer_channels import PeerChannels
from forebay.kvcache.transfer.pull_call import PullCall
from forebay.rpc.status import translated
from forebay.wire.pull_frame import frame_of


class GrpcBlockTransport:
    """A BlockTransport."""

    def __init__(self, channels: PeerChannels) -> None:
        self._channels = channels

    def reaches(self, source: SourceNode) -> bool:
        """Always: every node serves gRPC."""
        return True

    async def pull(self, request: PullRequest, sink: PullSink, target: BlockTarget, timeout_s: float) -> None:
        """As BlockTransport.pull."""
        with translated():
            async with (
                self._channels.to(request.source.address) as channel,
                PullCall(channel, request, sink, timeout_s, wants_data_connection=False) as call,
            ):
                async for message in call.messages():
                    self._take(message, sink, target, call)
                    if sink.is_settled:
                        call.finish()

    @staticmethod
    def _take(message: bytes, sink: PullSink, target: BlockTarget, call: PullCall) -> None:
        found = frame_of(message)
        if found is None:
            raise BadFrameError("a message of a pull holds no frame")
        frame, data = found
        is_written = sink.place(frame)
        if is_written:
            target.memory(frame.block_index)[frame.offset_bytes : frame.end_bytes] = data
        settled = sink.settle(frame, is_written, lambda index: xxh3_128_digest(target.memory(index)))
        if settled.arrived is not None:
            target.arrived(settled.arrived)
        call.answer(settled)
