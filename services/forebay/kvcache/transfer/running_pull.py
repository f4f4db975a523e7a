"""One pull at the sending node: what the receiver says, what gets sealed, and what may be sent because of both.

Knows not how frames travel: whoever carries them takes one after the other.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from forebay.errors import ForebayError
from forebay.kv.block_transport import SealedBlocks
from forebay.kv.pull_frame import Frame
from forebay.kv.pull_source import PullShape, PullSource
from forebay.kvcache.transfer.references import PullReferences
from forebay.tasks import end_task
from forebay.v1 import pull_pb2
from forebay.wire.pull_request import Opening, checked_grant


class RunningPull:
    """Runs from `start` to `close`; a frame's memory may be read until then.

    `on_change` is called when there may be a frame to take, or the pull has ended.
    """

    def __init__(self, blocks: SealedBlocks, opening: Opening) -> None:
        """Errors: InvalidFieldError when the credit is out of range."""
        block_count = len(opening.block_hashes)
        shape = PullShape(block_count, opening.layout.block_bytes, opening.first_block_index)
        self._source = PullSource(shape, opening.credit_bytes)
        self._seal_wait_s = opening.seal_wait_s
        self._references = PullReferences(blocks, opening.block_hashes, opening.first_block_index, opening.sequence_id)
        self._has_changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._no_more: ForebayError | None = None  # why the next block will not come; the ones before it will
        self._failure: ForebayError | None = None
        self._is_over = False
        self.on_change: Callable[[], None] = self._has_changed.set

    def start(self, requests: AsyncIterator[pull_pb2.PullBlocksRequest]) -> None:
        """Begins to listen to the receiver and to wait for seals."""
        self._tasks = [asyncio.create_task(self._listen(requests)), asyncio.create_task(self._seal())]

    async def close(self) -> None:
        """Gives the blocks back, at once; then ends what runs."""
        self._is_over = True
        for task in self._tasks:
            task.cancel()  # before the release, so that none of them takes another reference
        self._references.release()
        for task in self._tasks:
            await end_task(task)

    def take_frame(self) -> Frame | None:
        """The next frame, which whoever takes it sends; None: not now."""
        return None if self._is_over or self._failure is not None else self._source.next_frame()

    def memory_of(self, frame: Frame) -> memoryview:
        """Its bytes."""
        return self._references[frame.block_index].memory[frame.offset_bytes : frame.end_bytes]

    def fail(self, error: ForebayError) -> None:
        """Nothing more can be sent."""
        self._failure = self._failure or error
        self.on_change()

    async def next_frame(self) -> Frame | None:
        """Waits for a frame to take. None: the receiver has all it wants. Errors: why there will be none."""
        while not self.is_over():
            frame = self.take_frame()
            if frame is not None:
                return frame
            await self.changed()
        return None

    def is_over(self) -> bool:
        """Whether the receiver has all it wants. Errors: why it will not get it, once all that can be sent is taken."""
        if self._is_over:
            return True
        if self._failure is not None:
            raise self._failure
        if self._no_more is not None and self._source.is_idle:
            raise self._no_more
        return False

    async def changed(self) -> None:
        """Waits until `on_change` is called, where it was not replaced."""
        self._has_changed.clear()
        await self._has_changed.wait()

    async def _listen(self, requests: AsyncIterator[pull_pb2.PullBlocksRequest]) -> None:
        try:
            async for request in requests:
                grant = checked_grant(request)
                if grant.credit_bytes:
                    self._source.grant(grant.credit_bytes)
                for index in grant.repeat_block_indexes:
                    self._source.repeat(index)
                self.on_change()
        except ForebayError as error:
            self.fail(error)
        else:
            self._is_over = True
            self.on_change()

    async def _seal(self) -> None:
        try:
            while (index := self._source.first_unsealed) is not None:
                block = await self._references.wait_for(index, self._seal_wait_s)
                self._source.seal(block.digest())
                self.on_change()
                await asyncio.sleep(0)  # everybody else has a turn between two digests
        except ForebayError as error:
            self._no_more = error
            self.on_change()
