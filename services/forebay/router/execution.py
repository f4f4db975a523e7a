"""Carrying out one request's plan: prefill, hand-over, decode, text, end.

News arrive by callbacks on the loop; the one task of the request waits for them and yields. Whatever ends it (the last
token, an error, a cancel, a deadline), `release` leaves nothing at any worker.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from forebay.errors import RETRY_AFTER_S, ForebayError, WorkerLostError
from forebay.router.decode_link import DecodeLink
from forebay.router.early_bring import EarlyBring
from forebay.router.output import Output
from forebay.router.prefill_call import PrefillCall
from forebay.router.prefill_link import PrefillLink
from forebay.router.request import Request
from forebay.router.tokenizers import Tokenizers
from forebay.rpc.deadline import remaining_s
from forebay.rpc.status import from_failure
from forebay.telemetry import inject
from forebay.v1 import common_pb2, decode_pb2, prefill_pb2, router_pb2, tokenizer_pb2

SUMMARY_TIMEOUT_S: Final = 1.0
LEAST_DEADLINE_S: Final = 0.001  # of a request whose deadline passes at this very moment
MAX_SEQUENCE_ID_CHARACTERS: Final = 128


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the workers are told."""

    request: Request
    token_ids: Sequence[int]
    sampling: common_pb2.SamplingParams
    vocabulary_size: int


@dataclass(frozen=True, slots=True)
class Workers:
    """Who computes; without `prefill` the decode worker does it all.

    `taker`: who decodes a prefilled sequence now: `decode`, or another of its node's when that one leaves.
    `kvcache_address`: by node, where blocks can be pulled from. `early_bring`: brings the prompt's blocks to the decode
    worker's node while they are computed on another; None: on the same, or it cannot.
    """

    tokenizers: Tokenizers
    decode: DecodeLink
    prefill: PrefillLink | None
    taker: Callable[[], DecodeLink | None]
    kvcache_address: Callable[[str], str | None]
    early_bring: EarlyBring | None = None


class Execution:
    """`begin`, then iterate `chunks`, then read the results; `release` in any case."""

    def __init__(self, prompt: Prompt, workers: Workers) -> None:
        self._prompt = prompt
        self._workers = workers
        self._decode = workers.decode
        self._sequence_id = _sequence_id(prompt.request.request_id)
        self._traceparent = inject()
        options = tokenizer_pb2.DetokenizeOptions(stop=prompt.sampling.stop)
        self._stream = workers.tokenizers.open_stream(options, self)
        self._prefill: PrefillCall | None = None
        self._wake = asyncio.Event()
        self._failure: ForebayError | None = None
        self._failure_after_text: ForebayError | None = None  # to be told once the tokens that came before it are
        self._is_decode_over = False  # no (more) news from the decode worker
        self.output = Output()
        self.finish_reason = common_pb2.FINISH_REASON_UNSPECIFIED
        self.first_token: prefill_pb2.FirstToken | None = None
        self.summary: decode_pb2.DecodeSummary | None = None
        self.text_began_ns: int | None = None  # Unix time at which the first tokens went to the tokenizer
        self.text_ended_ns: int | None = None  # and at which its last text came

    def begin(self) -> None:
        """Sends the prompt to its first worker. Does not wait."""
        if self._workers.prefill is None:
            self._decode.start(self._start_sequence(), self)
            return
        request = prefill_pb2.PrefillRequest(
            request_id=self._sequence_id,
            token_ids=self._prompt.token_ids,
            sampling=self._prompt.sampling,
            tenant=self._prompt.request.tenant,
            cache_salt=self._prompt.request.cache_salt,
            qos_tier=self._prompt.request.qos_tier,
            seals_as_filled=self._workers.early_bring is not None,
        )
        self._prefill = self._workers.prefill.call(request, self)

    async def chunks(self) -> AsyncGenerator[router_pb2.Chunk, None]:
        """New text and tokens until the request is complete.

        Raises:
            ForebayError: what a worker failed with, or what `end` was told.
        """
        while not self.output.is_text_complete:
            await self._next_news()
            if self._failure is not None and not self.output.is_text_complete:
                raise self._failure
            chunk = self.output.take_chunk()
            if chunk is not None:
                yield chunk
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
        if self._prefill is not None:
            self._prefill.abandon(self._release_handed_over)
        self._decode.abandon(self._sequence_id)
        self._end_early_bring()
        self._workers.tokenizers.forget(self._stream)

    def on_begun(self) -> None:
        """The prefill worker computes and seals."""
        if self._workers.early_bring is not None:
            self._workers.early_bring.start(self._sequence_id)

    def on_first_token(self, first: prefill_pb2.FirstToken) -> None:
        """The prefill worker sampled."""
        self.first_token = first
        if first.finish_reason:
            self._is_decode_over = True
            self.finish_reason = first.finish_reason
        logprobs = [first.logprobs] if first.HasField("logprobs") else []
        self._push([first.token_id], logprobs, is_last=bool(first.finish_reason))

    def on_manifest(self, manifest: common_pb2.Manifest) -> None:
        """The prefill worker handed over."""
        assert self.first_token is not None
        start = self._start_sequence()
        start.manifest.CopyFrom(manifest)
        # The prefill worker knows its service as it is reached on their own node.
        start.manifest.kvcache_address = self._workers.kvcache_address(manifest.node_id) or manifest.kvcache_address
        start.emitted_token_ids.append(self.first_token.token_id)
        self._decode = self._taker()
        self._decode.start(start, self)

    def on_output(self, output: decode_pb2.SequenceOutput) -> None:
        """The decode worker has news."""
        self._end_early_bring()  # its sequence holds the blocks now
        is_last = bool(output.finish_reason) or output.HasField("error")
        if is_last:
            self._is_decode_over = True
            self.summary = output.summary if output.HasField("summary") else None
        if self.output.is_text_complete:
            self._wake.set()
            return
        error = _error_of(output)
        if error is not None and output.token_ids:
            self._failure_after_text = error
            self._push(output.token_ids, output.logprobs, is_last=True)
            return
        if error is not None:
            self._fail(error)
            return
        self.finish_reason = output.finish_reason
        if output.token_ids or is_last:
            self._push(output.token_ids, output.logprobs, is_last=is_last)

    def on_lost(self, error: ForebayError) -> None:
        """A worker was lost."""
        self._is_decode_over = True
        self._fail(error)

    def on_text(self, text: str, token_count: int, stop_match: str | None, is_last: bool) -> None:
        """The tokenizer has news."""
        self.output.add_text(text, token_count, stop_match, is_last)
        self.text_ended_ns = time.time_ns()
        self._wake.set()

    def on_text_failed(self, error: ForebayError) -> None:
        """No tokenizer can go on."""
        self._fail(error)

    def _end_early_bring(self) -> None:
        if self._workers.early_bring is not None:
            self._workers.early_bring.close()

    async def _next_news(self) -> None:
        await self._wake.wait()
        self._wake.clear()

    async def _stop_decode(self) -> None:
        """Ends the sequence and waits, not for long, for its summary: the counts and times it alone knows."""
        if self._prefill is not None:
            self._prefill.abandon(self._release_handed_over)
        if self._is_decode_over or not self._decode.has(self._sequence_id):
            return
        self._decode.cancel(self._sequence_id)
        try:
            async with asyncio.timeout(SUMMARY_TIMEOUT_S):
                while not self._is_decode_over:
                    await self._next_news()
        except TimeoutError:
            return

    def _push(self, token_ids: Sequence[int], logprobs: Sequence[common_pb2.TokenLogprobs], is_last: bool) -> None:
        if self.output.is_text_complete:
            return
        if any(token_id >= self._prompt.vocabulary_size for token_id in token_ids):
            self._fail(ForebayError("a worker generated a token id outside of the vocabulary"))
            return
        self.output.add_tokens(token_ids, logprobs)
        self.text_began_ns = self.text_began_ns or time.time_ns()
        self._stream.push(token_ids, is_last)
        self._workers.tokenizers.send(self._stream)

    def _fail(self, error: ForebayError) -> None:
        if self._failure is None:
            self._failure = error
        self._wake.set()

    def _start_sequence(self) -> decode_pb2.StartSequence:
        left_s = remaining_s()
        return decode_pb2.StartSequence(
            request_id=self._sequence_id,
            prompt_token_ids=self._prompt.token_ids,
            sampling=self._prompt.sampling,
            tenant=self._prompt.request.tenant,
            cache_salt=self._prompt.request.cache_salt,
            qos_tier=self._prompt.request.qos_tier,
            deadline_s=None if left_s is None else max(left_s, LEAST_DEADLINE_S),
            traceparent=self._traceparent.get("traceparent", ""),
            tracestate=self._traceparent.get("tracestate", ""),
            gather_ms=self._prompt.request.gather_ms,
        )

    def _release_handed_over(self, manifest: common_pb2.Manifest) -> None:
        """The sequence waits for an owner that will not come: a decode worker of its node takes it and lets it go.

        On another node nobody can: there the offer runs out by itself, within a second.
        """
        start = self._start_sequence()
        start.manifest.CopyFrom(manifest)
        if self.first_token is not None:
            start.emitted_token_ids.append(self.first_token.token_id)
        self._taker().start_abandoned(start)

    def _taker(self) -> DecodeLink:
        # The blocks go to the planned node. When nobody there can go on, the link of the plan says why.
        return self._workers.taker() or self._workers.decode


def _error_of(output: decode_pb2.SequenceOutput) -> ForebayError | None:
    if output.HasField("error"):
        return from_failure(output.error)
    if output.finish_reason == common_pb2.FINISH_REASON_CANCELLED:
        return WorkerLostError("the decode worker gave the sequence up", retry_after_s=RETRY_AFTER_S)
    return None


def _sequence_id(request_id: str) -> str:
    """A name of this attempt alone: while the workers end a request, the next of its id may have begun."""
    nonce = f".{secrets.token_hex(8)}"
    return request_id[: MAX_SEQUENCE_ID_CHARACTERS - len(nonce)] + nonce
