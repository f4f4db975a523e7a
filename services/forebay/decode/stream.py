"""One Decode stream: its sequences, and their news gathered into few messages.

What a client waits for, a first token or an end, is written at once and alone; all other tokens wait until the worker
says that they are due, since each message costs the cores that the engine computes with.

A slow reader costs memory for its own tokens only: what cannot be written yet is merged into the next message.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Final

from forebay.decode.sequence import generate
from forebay.engine.types import TokenLogprobs
from forebay.errors import DrainingError, DuplicateRequestError, ForebayError, InvalidFieldError
from forebay.rpc.status import located, to_failure
from forebay.v1 import common_pb2, decode_pb2
from forebay.wire.tokens import logprobs_to_proto
from forebay.worker.moved_on import MovedOnError
from forebay.worker.request_check import ServedModel
from forebay.worker.sequence_runner import SequenceRunner

_log = logging.getLogger(__name__)

SERVICE_NAME: Final = decode_pb2.DESCRIPTOR.services_by_name["DecodeService"].full_name


@dataclass(slots=True)
class TokenGathering:
    """A request's wish that its tokens be gathered for so many seconds."""

    gather_s: float
    _since_s: float | None = None

    def is_over(self, now_s: float) -> bool:
        """Asked whenever tokens wait; begins anew when it is."""
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s < self.gather_s:
            return False
        self._since_s = now_s
        return True


class DecodeStream:
    """Invariant: every sequence started here gets exactly one last output, unless the stream ends before."""

    def __init__(self, runner: SequenceRunner, model: ServedModel, node_id: str) -> None:
        self._runner = runner
        self._model = model
        self._node_id = node_id
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._outputs: dict[str, decode_pb2.SequenceOutput] = {}  # news not yet written, by request id
        self._urgent: set[str] = set()  # request ids whose news are to be written now
        self._gatherings: dict[str, TokenGathering] = {}  # of those that would rather have fewer messages
        self._refusals: list[decode_pb2.SequenceOutput] = []  # of ids that run already: never merged with theirs
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def responses(
        self, commands: AsyncIterator[decode_pb2.DecodeRequest]
    ) -> AsyncGenerator[decode_pb2.DecodeResponse, None]:
        """What to write, until the caller has said all and every sequence has ended."""
        self._reading = asyncio.create_task(self._read(commands), name="decode-commands")
        with self._runner.telling_due(self._tell_due):
            while True:
                await self._news.wait()
                # One turn of the loop, so that sequences which this step has ended can add their last word.
                await asyncio.sleep(0)
                self._news.clear()
                while outputs := self._take():
                    yield decode_pb2.DecodeResponse(outputs=outputs)
                if self._reading.done():
                    self._reading.result()
                    if not self._tasks:
                        return

    def close(self) -> None:
        """Cancels all sequences; each gives up what it holds by itself."""
        if self._reading is not None:
            self._reading.cancel()
            self._reading.add_done_callback(lambda done: done.cancelled() or done.exception())
        for task in self._tasks.values():
            task.cancel()

    def _take(self) -> list[decode_pb2.SequenceOutput]:
        if self._refusals:
            return [self._refusals.pop(0)]
        outputs = [self._outputs.pop(request_id) for request_id in self._urgent]
        self._urgent.clear()
        return outputs

    def _tell_due(self) -> None:
        """All that waits is to be written, but for what may wait for longer."""
        now_s = asyncio.get_running_loop().time()
        for request_id in self._outputs:
            gathering = self._gatherings.get(request_id)
            if gathering is None or gathering.is_over(now_s):
                self._urgent.add(request_id)
        if self._urgent:
            self._news.set()

    async def _read(self, commands: AsyncIterator[decode_pb2.DecodeRequest]) -> None:
        try:
            async for command in commands:
                kind = command.WhichOneof("command")
                if kind == "start":
                    self._start(command.start)
                elif kind == "cancel":
                    self._cancel(command.cancel.request_id)
                else:
                    raise InvalidFieldError("a command is neither start nor cancel", field="command")
        finally:
            self._news.set()

    def _start(self, start: decode_pb2.StartSequence) -> None:
        request_id = start.request_id
        if request_id in self._tasks or request_id in self._outputs:
            error = DuplicateRequestError("a request with this id is running", field="request_id")
            self._refusals.append(decode_pb2.SequenceOutput(request_id=request_id, error=to_failure(error)))
            self._news.set()
            return
        task = asyncio.create_task(self._run(start), name=f"decode-{request_id}")
        self._tasks[request_id] = task
        if start.gather_ms:
            self._gatherings[request_id] = TokenGathering(start.gather_ms / 1e3)
        task.add_done_callback(lambda done: self._forget(start, done))

    def _cancel(self, request_id: str) -> None:
        if request_id in self._tasks:
            self._tasks[request_id].cancel()

    async def _run(self, start: decode_pb2.StartSequence) -> None:
        """One sequence from its start to its last output."""
        request_id = start.request_id

        told_epoch: int | None = None

        def on_token(token_id: int, logprobs: TokenLogprobs | None) -> None:
            nonlocal told_epoch
            output = self._output(request_id, is_urgent=told_epoch is None)
            epoch = self._runner.epoch_of(request_id)
            if epoch != told_epoch:  # the first, or it was parked since
                output.kv_epoch = told_epoch = epoch
            output.token_ids.append(token_id)
            if logprobs is not None:
                output.logprobs.append(logprobs_to_proto(token_id, logprobs))

        summary = decode_pb2.DecodeSummary()
        reason = common_pb2.FINISH_REASON_UNSPECIFIED
        failure: ForebayError | None = None
        try:
            reason = await generate(start, self._runner, self._model, self._node_id, on_token, summary)
        except asyncio.CancelledError:
            reason = common_pb2.FINISH_REASON_CANCELLED
        except ForebayError as error:
            failure = error
        except Exception:
            _log.exception("a sequence failed")
            failure = ForebayError("internal error; the worker's log says more")
        output = self._output(request_id, is_urgent=True)
        output.finish_reason = reason
        output.summary.CopyFrom(summary)
        if isinstance(failure, DrainingError):
            output.kv_epoch = failure.epoch if isinstance(failure, MovedOnError) else 0
        if failure is not None:
            output.error.CopyFrom(to_failure(located(failure, SERVICE_NAME)))

    def _output(self, request_id: str, *, is_urgent: bool) -> decode_pb2.SequenceOutput:
        """The sequence's news that is not yet written."""
        output = self._outputs.get(request_id)
        if output is None:
            output = self._outputs[request_id] = decode_pb2.SequenceOutput(request_id=request_id)
        if is_urgent:
            self._urgent.add(request_id)
            self._news.set()
        return output

    def _forget(self, start: decode_pb2.StartSequence, task: "asyncio.Task[None]") -> None:
        del self._tasks[start.request_id]
        self._gatherings.pop(start.request_id, None)
        if task.cancelled():  # before it had begun
            self._output(start.request_id, is_urgent=True).finish_reason = common_pb2.FINISH_REASON_CANCELLED
        # Whatever went wrong before the take-over, the offer is not left to run out. A taken one has a new epoch.
        if start.HasField("left_behind_epoch"):
            self._runner.decline(start.request_id, start.left_behind_epoch)
        elif start.HasField("manifest") and start.manifest.node_id == self._node_id:
            self._runner.decline(start.request_id, start.manifest.epoch)
        self._news.set()  # it may have been the last
