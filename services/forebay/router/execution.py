"""Carrying out one request: its attempts, one after the other if workers fail, and the text of what they generate.

News arrive by callbacks on the loop; the one task of the request waits for them and yields. The tokens of all attempts
are one answer: each goes on behind what the ones before had generated. Whatever ends the request (the last token, an
error, a cancel, a deadline), `release` leaves nothing at any worker.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

from forebay.errors import RETRY_AFTER_S, ForebayError, InvalidFieldError, NoWorkerError, WorkerLostError
from forebay.router.attempt import Attempt
from forebay.router.output import Output
from forebay.router.prompt import Prompt
from forebay.router.request import NOTHING_RECEIVED
from forebay.router.tokenizers import Tokenizers
from forebay.routing.failover import Failover
from forebay.rpc.status import from_failure
from forebay.telemetry import span, spans
from forebay.v1 import common_pb2, decode_pb2, prefill_pb2, router_pb2, tokenizer_pb2

SUMMARY_TIMEOUT_S: Final = 1.0

NextAttempt = Callable[[Sequence[int]], Attempt]
"""Plans again, behind the tokens generated so far. Raises NoWorkerError."""


class Execution:
    """`recall`, `begin` unless that completed it, iterate `chunks`, then read the results; `release` in any case."""

    def __init__(self, prompt: Prompt, tokenizers: Tokenizers, next_attempt: NextAttempt, failover: Failover) -> None:
        self._prompt = prompt
        self._tokenizers = tokenizers
        self._next_attempt = next_attempt
        self._failover = failover
        options = tokenizer_pb2.DetokenizeOptions(stop=prompt.sampling.stop)
        self._stream = tokenizers.open_stream(options, self)
        self._attempt: Attempt | None = None
        self._wake = asyncio.Event()
        self._failure: ForebayError | None = None
        self._failure_after_text: ForebayError | None = None  # to be told once the tokens that came before it are
        self._attempt_failure: ForebayError | None = None  # of the attempt, which another may follow
        self._lost_worker_id: str | None = None  # that ended with the attempt
        self._received = prompt.request.received or NOTHING_RECEIVED
        self._surplus_characters = 0  # of received text that the received tokens have only if no more follow
        self.output = Output(self._received.token_ids)
        self.finish_reason = common_pb2.FINISH_REASON_UNSPECIFIED
        self.first_token: prefill_pb2.FirstToken | None = None
        self.summary: decode_pb2.DecodeSummary | None = None
        self.failover_count = 0
        self._has_begun_again = False  # after a token of the answer
        self.text_began_ns: int | None = None  # Unix time at which the first tokens went to the tokenizer
        self.text_ended_ns: int | None = None  # and at which its last text came

    @property
    def recomputed_tokens(self) -> int:
        """Prompt tokens that the last worker computed once more, though the answer had begun; as far as it said."""
        return self.summary.computed_prompt_tokens if self._has_begun_again and self.summary is not None else 0

    async def recall(self) -> None:
        """Makes text of the tokens that the caller has from another router, so that it goes on behind its own.

        Raises ForebayError: no tokenizer can, or what `end` was told.
        """
        if not self._received.token_ids:
            return
        self._stream.recall(self._received.token_ids, self._received.text_characters)
        self._send_tokens()
        while self.text_ended_ns is None and self._failure is None:
            await self._next_news()
        if self._failure is not None:
            raise self._failure
        self._surplus_characters = self._stream.missing_characters
        self._wake.set()  # there may be text that the caller has not

    def begin(self, attempt: Attempt) -> None:
        """Sends the prompt to its first worker. Does not wait."""
        self._attempt = attempt
        attempt.begin(self)

    async def chunks(self) -> AsyncGenerator[router_pb2.Chunk, None]:
        """New text and tokens until the request is complete.

        Raises:
            ForebayError: what a worker failed with when no other goes on, or what `end` was told.
        """
        while not self.output.is_text_complete:
            await self._next_news()
            if self._failure is not None and not self.output.is_text_complete:
                raise self._failure
            chunk = self.output.take_chunk()
            if chunk is not None:
                yield chunk
            if self._attempt_failure is not None and not self.output.is_text_complete:
                await self._fail_over()
        last = self.output.take_chunk()
        if last is not None:
            yield last
        if self._failure_after_text is not None and self.output.stop_match is None:
            raise self._failure_after_text
        if self.output.stop_match is not None:
            self.finish_reason = common_pb2.FINISH_REASON_STOP
            await self._stop_decode()

    def end(self, error: ForebayError) -> None:
        """Ends the request from elsewhere."""
        self._fail(error)

    def release(self) -> None:
        """Frees everything at every worker. Does not wait. Idempotent."""
        if self._attempt is not None:
            self._attempt.release()
        self._tokenizers.forget(self._stream)

    def on_first_token(self, first: prefill_pb2.FirstToken) -> None:
        """The prefill worker sampled."""
        self.first_token = first
        if first.finish_reason:
            self.finish_reason = first.finish_reason
        logprobs = [first.logprobs] if first.HasField("logprobs") else []
        self._push([first.token_id], logprobs, is_last=bool(first.finish_reason))

    def on_output(self, output: decode_pb2.SequenceOutput) -> None:
        """The decode worker has news."""
        if output.HasField("summary"):
            self.summary = output.summary
        if self.output.is_text_complete:
            self._wake.set()
            return
        error = _error_of(output)
        if error is not None:
            self._on_error(error, output)
            return
        self.finish_reason = output.finish_reason
        if output.token_ids or output.finish_reason:
            self._push(output.token_ids, output.logprobs, is_last=bool(output.finish_reason))

    def on_lost(self, error: ForebayError) -> None:
        """A worker was lost, or failed its call."""
        self._lost_worker_id = error.metadata.get("worker_id")
        self._on_failed(error)

    def on_text(self, text: str, token_count: int, stop_match: str | None, is_last: bool) -> None:
        """The tokenizer has news."""
        if (is_last or stop_match is not None) and self._stream.missing_characters:
            self._fail(self._too_much_text())
            return
        self.output.add_text(text, token_count, stop_match, is_last)
        self.text_ended_ns = time.time_ns()
        self._wake.set()

    def on_text_failed(self, error: ForebayError) -> None:
        """No tokenizer can go on."""
        self._fail(error)

    async def _next_news(self) -> None:
        await self._wake.wait()
        self._wake.clear()

    def _on_error(self, error: ForebayError, output: decode_pb2.SequenceOutput) -> None:
        """The decode worker failed the sequence, perhaps with last tokens."""
        if output.token_ids and not self._failover.passes(error):
            self._failure_after_text = error
            self._push(output.token_ids, output.logprobs, is_last=True)
            return
        if output.token_ids:
            self._push(output.token_ids, output.logprobs, is_last=False)
        self._on_failed(error)

    def _on_failed(self, error: ForebayError) -> None:
        """The attempt has failed: another follows, unless it would fail too."""
        if not self._failover.passes(error):
            self._fail(error)
            return
        self._attempt_failure = error
        self._wake.set()

    async def _fail_over(self) -> None:
        """Goes on with another attempt. Raises what the caller is to hear when there is none."""
        assert self._attempt is not None
        self._attempt.release()
        with span(spans.FAILOVER) as current:
            while self._attempt_failure is not None:
                error, self._attempt_failure = self._attempt_failure, None
                lost_worker_id, self._lost_worker_id = self._lost_worker_id, None
                current.set_attributes({spans.ERROR_TYPE: error.reason, spans.LOST_WORKER_ID: lost_worker_id or ""})
                await self._pause(self._failover.delay_s(error, lost_worker_id, time.monotonic()))
                if self._failure is not None or self.output.is_text_complete:
                    return
                try:
                    self._attempt = self._next_attempt(self.output.token_ids)
                except NoWorkerError as nobody:
                    self._attempt_failure = nobody
            current.set_attribute(spans.OUTPUT_TOKENS, len(self.output.token_ids))
            self.failover_count += 1
            self._has_begun_again = bool(self.output.token_ids)
            self._attempt.begin(self)

    async def _pause(self, seconds: float) -> None:
        """Until the time is over, or the request is."""
        try:
            async with asyncio.timeout(seconds):
                while self._failure is None and not self.output.is_text_complete:
                    await self._next_news()
        except TimeoutError:
            return
        finally:
            self._wake.set()  # what came meanwhile is still to be told

    async def _stop_decode(self) -> None:
        """Ends the sequence and waits, not for long, for its summary: the counts and times it alone knows."""
        if self._attempt is None or not self._attempt.end_decode():
            return
        try:
            async with asyncio.timeout(SUMMARY_TIMEOUT_S):
                while not self._attempt.is_over:
                    await self._next_news()
        except TimeoutError:
            return

    def _push(self, token_ids: Sequence[int], logprobs: Sequence[common_pb2.TokenLogprobs], is_last: bool) -> None:
        if self.output.is_text_complete:
            return
        if token_ids and max(token_ids) >= self._prompt.vocabulary_size:
            self._fail(ForebayError("a worker generated a token id outside of the vocabulary"))
            return
        if token_ids and self._surplus_characters:
            self._fail(self._too_much_text())
            return
        if token_ids:
            self._failover.progressed()
        self.output.add_tokens(token_ids, logprobs)
        self._stream.push(token_ids, is_last)
        self._send_tokens()

    def _send_tokens(self) -> None:
        self.text_began_ns = self.text_began_ns or time.time_ns()
        self._tokenizers.send(self._stream)

    def _too_much_text(self) -> InvalidFieldError:
        return InvalidFieldError(
            f"the tokens received have less text than {self._received.text_characters} characters",
            field="resume.text_characters",
        )

    def _fail(self, error: ForebayError) -> None:
        if self._failure is None:
            self._failure = error
        self._wake.set()


def _error_of(output: decode_pb2.SequenceOutput) -> ForebayError | None:
    if output.HasField("error"):
        return from_failure(output.error)
    if output.finish_reason == common_pb2.FINISH_REASON_CANCELLED:
        return WorkerLostError("the decode worker gave the sequence up", retry_after_s=RETRY_AFTER_S)
    return None
