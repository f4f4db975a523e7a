"""Pulls blocks by the best way there is, resumes what breaks, and says what became of each block."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from forebay.errors import (
    BlockCorruptError,
    Code,
    DeadlineExceededError,
    ForebayError,
    NoDataConnectionError,
    RemoteError,
)
from forebay.kv.block_transport import BlockTarget, BlockTransport, PullOutcome, PullRequest
from forebay.kv.pull_sink import PullSink
from forebay.tasks import end_task

WINDOW_BYTES: Final = 16 * 1024 * 1024
"""Most that is on its way for one pull."""
MAX_IDLE_SESSIONS: Final = 2
"""Sessions in a row that may break without having brought a block."""
STALL_S: Final = 3.0
"""Longest wait for the next block that is sealed: a source that is frozen says nothing, and its connection stands."""
_LOOK_S: Final = 0.1


class BlockPuller:
    """`transports`: the best first; the last is the fallback. `clock` is monotonic, seconds."""

    def __init__(
        self, transports: Sequence[BlockTransport], clock: Callable[[], float], stall_s: float = STALL_S
    ) -> None:
        self._transports = transports
        self._clock = clock
        self._stall_s = stall_s

    async def pull(self, request: PullRequest, target: BlockTarget) -> PullOutcome:
        """Returns when each block has arrived or will not. When cancelled, nobody writes to the target any more."""
        sink = PullSink(len(request.block_hashes), request.layout.block_bytes, WINDOW_BYTES)
        error = await self._pull(request, sink, target)
        missing: dict[int, ForebayError] = {
            index: BlockCorruptError(f"block {index} did not match its digest, twice", block_index=str(index))
            for index in sink.failed
        }
        if error is not None:
            wanted = range(sink.block_count)
            missing |= {index: error for index in wanted if index not in sink.arrived and index not in sink.failed}
        return PullOutcome(tuple(sorted(sink.arrived)), missing)

    async def _pull(self, request: PullRequest, sink: PullSink, target: BlockTarget) -> ForebayError | None:
        """Why what is missing is missing; None: all is settled."""
        ends_at_s = self._clock() + request.timeout_s
        ways = [transport for transport in self._transports if transport.reaches(request.source)]
        idle_sessions = 0
        while not sink.is_settled:
            left_s = ends_at_s - self._clock()
            if left_s <= 0:
                return DeadlineExceededError(f"the pull took longer than {request.timeout_s:g} s")
            arrived_before = len(sink.arrived)
            try:
                await self._session(ways[0], request, sink, target, left_s)
            except NoDataConnectionError as error:
                if len(ways) == 1:
                    return error
                del ways[0]
            except RemoteError as error:
                idle_sessions = 0 if len(sink.arrived) > arrived_before else idle_sessions + 1
                if error.code is not Code.UNAVAILABLE or idle_sessions == MAX_IDLE_SESSIONS:
                    return error
            except ForebayError as error:
                return error
        return None

    async def _session(
        self, way: BlockTransport, request: PullRequest, sink: PullSink, target: BlockTarget, left_s: float
    ) -> None:
        """Pulls until all is settled, or nothing comes any more. Raises DeadlineExceededError, and as the transport."""
        patience_s = request.seal_wait_s + self._stall_s
        session = asyncio.create_task(way.pull(request, sink, target, left_s), name="pull-session")
        try:
            arrived, since_s = len(sink.arrived), self._clock()
            while not (await asyncio.wait((session,), timeout=_LOOK_S))[0]:
                if len(sink.arrived) != arrived:
                    arrived, since_s = len(sink.arrived), self._clock()
                elif self._clock() - since_s >= patience_s:
                    raise DeadlineExceededError(f"no block came from the source for {patience_s:g} s")
            session.result()
        finally:
            await end_task(session)
