"""Blocks that lie on this node already: nothing is copied, they are only found, and waited for where not yet sealed."""

import asyncio

from forebay.errors import DeadlineExceededError, LayoutMismatchError
from forebay.kv.block_transport import BlockTarget, PullRequest, SealedBlocks, SourceNode
from forebay.kv.pull_sink import PullSink
from forebay.kvcache.transfer.references import PullReferences


class SameNodeTransport:
    """A BlockTransport."""

    def __init__(self, node_id: str, blocks: SealedBlocks) -> None:
        self._node_id = node_id
        self._blocks = blocks

    def reaches(self, source: SourceNode) -> bool:
        """Only this node."""
        return source.node_id == self._node_id

    async def pull(self, request: PullRequest, sink: PullSink, target: BlockTarget, timeout_s: float) -> None:
        """As BlockTransport.pull."""
        if request.layout != self._blocks.layout:
            raise LayoutMismatchError(f"KV is not laid out so here: {request.layout.differences(self._blocks.layout)}")
        references = PullReferences(self._blocks, request.block_hashes, 0, request.sequence_id)
        try:
            async with asyncio.timeout(timeout_s):
                for index in range(len(request.block_hashes)):
                    await references.wait_for(index, request.seal_wait_s)
                    sink.note_present(index)
                    target.present(index)
        except TimeoutError:
            raise DeadlineExceededError(f"the pull took longer than {timeout_s:g} s") from None
        finally:
            references.release()
