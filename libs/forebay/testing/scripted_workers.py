"""Hand-written tokenizer, prefill and decode services that say what a test told them, for contract tests of a router.

Token i is character i, but for two that are half of one: text of a prompt is its token ids, and tokens generated are
the characters of `Script.output`.
They keep what they saw, and what still runs, so that a test can tell whether everything was released.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from forebay.errors import ForebayError, NotServedYetError, TemplateFailedError, TokenOutOfRangeError, UnknownRoleError
from forebay.kv.layout import KvDtype, KvLayout
from forebay.rpc.status import to_failure
from forebay.v1 import (
    common_pb2,
    decode_pb2,
    decode_pb2_grpc,
    prefill_pb2,
    prefill_pb2_grpc,
    tokenizer_pb2,
    tokenizer_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)

MODEL: Final = "fake-model"
DIGEST: Final = "fake-digest"
LAYOUT: Final = KvLayout(dtype=KvDtype.FLOAT32, layers=2, kv_heads=1, head_dim=4, block_tokens=4)
VOCABULARY_SIZE: Final = 128
CONTEXT_TOKENS: Final = 64
OFFER_S: Final = 0.5  # an offer that nobody takes runs out
REFUSED_TOKEN_ID: Final = 1  # ends the tokenizer's stream
GARBLED_TOKEN_ID: Final = 2  # is answered, the first time, against the contract
FIRST_HALF, SECOND_HALF, WHOLE = "\x03", "\x04", "é"  # two tokens that are one character only together


def _set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event


@dataclass(slots=True)
class Script:
    """What the workers do."""

    output: str = "hello"  # ends with STOP after it, with LENGTH at max_tokens
    prefill_error: ForebayError | None = None
    decode_error: ForebayError | None = None
    last_words: str = ""  # tokens that come with the decode error
    has_token: asyncio.Event = field(default_factory=_set)  # prefill waits for these
    has_manifest: asyncio.Event = field(default_factory=_set)
    has_encoded: asyncio.Event = field(default_factory=_set)
    has_text: asyncio.Event = field(default_factory=_set)  # the tokenizer's answers wait for it
    held_after: int | None = None  # decode stops here, counted over all tokens, until cancelled or
    goes_on: asyncio.Event = field(default_factory=asyncio.Event)
    has_cancelled: asyncio.Event = field(default_factory=_set)  # a cancelled sequence's last word waits for it
    kv_epoch: int = 0  # which decode tells; 0: none
    left_behind_error: ForebayError | None = None  # of a decode that is to take a lost worker's sequence over


class FakeTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """One character is one token."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.encoding = 0
        self.open_stream_ids: set[int] = set()
        self.message_count = 0
        self.has_garbled = False
        self.calls: set[Any] = set()  # open Detokenize calls

    async def GetTokenizer(  # noqa: N802  # gRPC's name
        self, request: tokenizer_pb2.GetTokenizerRequest, context: object
    ) -> tokenizer_pb2.GetTokenizerResponse:
        return tokenizer_pb2.GetTokenizerResponse(
            model=MODEL, model_digest=DIGEST, vocabulary_size=VOCABULARY_SIZE, context_tokens=CONTEXT_TOKENS
        )

    async def Encode(  # noqa: N802  # gRPC's name
        self, request: tokenizer_pb2.EncodeRequest, context: object
    ) -> tokenizer_pb2.EncodeResponse:
        self.encoding += 1
        try:
            await self._script.has_encoded.wait()
        finally:
            self.encoding -= 1
        text = request.input.text
        for message in request.input.chat.messages:
            if message.role not in {"system", "user", "assistant", "tool"}:
                raise UnknownRoleError("no such role", field="chat.messages[0].role")
            if message.content == "break the template":
                raise TemplateFailedError("the template refused", field="chat.messages")
            text += message.content
        return tokenizer_pb2.EncodeResponse(token_ids=[ord(character) for character in text])

    async def EncodeBatch(  # noqa: N802  # gRPC's name
        self, request: tokenizer_pb2.EncodeBatchRequest, context: object
    ) -> tokenizer_pb2.EncodeBatchResponse:
        raise NotServedYetError("a router does not ask for this")

    async def Detokenize(  # noqa: N802  # gRPC's name
        self, request_iterator: AsyncIterator[tokenizer_pb2.DetokenizeRequest], context: object
    ) -> AsyncIterator[tokenizer_pb2.DetokenizeResponse]:
        streams: dict[int, _Text] = {}
        self.calls.add(context)
        try:
            async for request in request_iterator:
                self.message_count += 1
                token_ids = {token_id for item in request.items for token_id in item.token_ids}
                if REFUSED_TOKEN_ID in token_ids:
                    raise TokenOutOfRangeError("refused", field="items.token_ids")
                if GARBLED_TOKEN_ID in token_ids and not self.has_garbled:
                    self.has_garbled = True
                    yield tokenizer_pb2.DetokenizeResponse()  # not as many items as were asked for
                    continue
                answers = [self._answer(item, streams) for item in request.items]
                self.open_stream_ids = set(streams)
                await self._script.has_text.wait()
                yield tokenizer_pb2.DetokenizeResponse(items=answers)
        finally:
            self.calls.discard(context)
            self.open_stream_ids = set()

    def _answer(self, item: tokenizer_pb2.DetokenizeItem, streams: "dict[int, _Text]") -> tokenizer_pb2.DetokenizedText:
        if item.HasField("open"):
            assert item.stream_id not in streams
            streams[item.stream_id] = _Text(list(item.open.stop))
        answer = streams[item.stream_id].push(item)
        if item.is_last or answer.HasField("stop_match"):
            del streams[item.stream_id]
        return answer


@dataclass(slots=True)
class _Text:
    """Holds back as many characters as the longest stop string has, less one: simple, and late enough."""

    stop: list[str]
    held: str = ""
    has_half: bool = False

    def push(self, item: tokenizer_pb2.DetokenizeItem) -> tokenizer_pb2.DetokenizedText:
        text = ""
        for token_count, token_id in enumerate(item.token_ids, 1):
            self.held += self._character(chr(token_id))
            for stop in self.stop:
                at = self.held.find(stop)
                if at >= 0:
                    return tokenizer_pb2.DetokenizedText(
                        stream_id=item.stream_id,
                        text=text + self.held[:at],
                        stop_match=stop,
                        stop_token_count=token_count,
                    )
            text += self._let_go(max((len(stop) - 1 for stop in self.stop), default=0))
        if item.is_last:
            text += self._let_go(0)
        return tokenizer_pb2.DetokenizedText(stream_id=item.stream_id, text=text)

    def _character(self, piece: str) -> str:
        is_whole, self.has_half = self.has_half and piece == SECOND_HALF, piece == FIRST_HALF
        return "" if self.has_half else WHOLE if is_whole else piece

    def _let_go(self, keep: int) -> str:
        cut = max(0, len(self.held) - keep)
        text, self.held = self.held[:cut], self.held[cut:]
        return text


class FakePrefill(prefill_pb2_grpc.PrefillServiceServicer):
    """Samples the script's first character."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.requests: list[prefill_pb2.PrefillRequest] = []
        self.running: set[str] = set()
        self.offered: set[str] = set()  # handed over, not yet taken

    async def Prefill(  # noqa: N802  # gRPC's name
        self, request: prefill_pb2.PrefillRequest, context: object
    ) -> AsyncIterator[prefill_pb2.PrefillResponse]:
        self.requests.append(request)
        self.running.add(request.request_id)
        is_given_away = False
        try:
            await self._script.has_token.wait()
            if self._script.prefill_error is not None:
                raise self._script.prefill_error
            reason = _reason(self._script, 1, request.sampling)
            yield prefill_pb2.PrefillResponse(
                first_token=prefill_pb2.FirstToken(
                    token_id=ord(self._script.output[0]),
                    logprobs=_logprobs(ord(self._script.output[0]), request.sampling),
                    finish_reason=reason,
                    cached_tokens=4,
                    queue_s=0.25,
                    prefill_s=0.5,
                )
            )
            if not reason:
                await self._script.has_manifest.wait()
                self.offered.add(request.request_id)
                yield prefill_pb2.PrefillResponse(
                    manifest=common_pb2.Manifest(sequence_id=request.request_id, node_id="node", epoch=2)
                )
                is_given_away = True
                asyncio.get_running_loop().call_later(OFFER_S, self.offered.discard, request.request_id)
        finally:
            self.running.discard(request.request_id)
            if not is_given_away:
                self.offered.discard(request.request_id)


class FakeDecode(decode_pb2_grpc.DecodeServiceServicer):
    """Says the rest of the script, one token a message, all sequences of a stream at once."""

    def __init__(self, script: Script, prefill: FakePrefill | None = None) -> None:
        self._script = script
        self._prefill = prefill
        self.starts: list[decode_pb2.StartSequence] = []
        self.cancels: list[str] = []
        self.running: set[str] = set()
        self.calls: set[Any] = set()  # open Decode calls

    async def Decode(  # noqa: N802  # gRPC's name
        self, request_iterator: AsyncIterator[decode_pb2.DecodeRequest], context: Any
    ) -> AsyncIterator[decode_pb2.DecodeResponse]:
        outputs: asyncio.Queue[decode_pb2.SequenceOutput] = asyncio.Queue()
        tasks: dict[str, asyncio.Task[None]] = {}
        reader = asyncio.create_task(self._read(request_iterator, outputs, tasks))
        self.calls.add(context)
        try:
            while True:
                yield decode_pb2.DecodeResponse(outputs=[await outputs.get()])
        finally:
            self.calls.discard(context)
            for task in [reader, *tasks.values()]:
                task.cancel()
            self.running.difference_update(tasks)

    async def _read(
        self,
        commands: AsyncIterator[decode_pb2.DecodeRequest],
        outputs: "asyncio.Queue[decode_pb2.SequenceOutput]",
        tasks: "dict[str, asyncio.Task[None]]",
    ) -> None:
        async for command in commands:
            if command.HasField("start"):
                start = command.start
                self.starts.append(start)
                self.running.add(start.request_id)
                if self._prefill is not None:
                    self._prefill.offered.discard(start.request_id)
                tasks[start.request_id] = asyncio.create_task(self._say(start, outputs))
            else:
                request_id = command.cancel.request_id
                self.cancels.append(request_id)
                if request_id in self.running:
                    tasks[request_id].cancel()
                    tasks[request_id] = asyncio.create_task(self._end(request_id, outputs))

    async def _end(self, request_id: str, outputs: "asyncio.Queue[decode_pb2.SequenceOutput]") -> None:
        await self._script.has_cancelled.wait()
        outputs.put_nowait(self._last(request_id, common_pb2.FINISH_REASON_CANCELLED))

    async def _say(self, start: decode_pb2.StartSequence, outputs: "asyncio.Queue[decode_pb2.SequenceOutput]") -> None:
        decode_error = self._script.decode_error
        if start.HasField("left_behind_epoch"):
            decode_error = decode_error or self._script.left_behind_error
        if decode_error is not None:
            error = to_failure(decode_error)
            token_ids = list(map(ord, self._script.last_words[len(start.emitted_token_ids) :]))
            outputs.put_nowait(decode_pb2.SequenceOutput(request_id=start.request_id, error=error, token_ids=token_ids))
            self.running.discard(start.request_id)
            return
        emitted_count = len(start.emitted_token_ids)
        if emitted_count and (reason := _reason(self._script, emitted_count, start.sampling)):
            outputs.put_nowait(self._last(start.request_id, reason))
            return
        for index in range(emitted_count, len(self._script.output)):
            if index == self._script.held_after:
                await self._script.goes_on.wait()
            token_id = ord(self._script.output[index])
            reason = _reason(self._script, index + 1, start.sampling)
            output = self._last(start.request_id, reason) if reason else decode_pb2.SequenceOutput()
            output.request_id = start.request_id
            output.token_ids.append(token_id)
            if index == emitted_count:
                output.kv_epoch = self._script.kv_epoch
            logprobs = _logprobs(token_id, start.sampling)
            if logprobs is not None:
                output.logprobs.append(logprobs)
            outputs.put_nowait(output)
            if reason:
                return
            await asyncio.sleep(0)

    def _last(self, request_id: str, reason: "common_pb2.FinishReason.ValueType") -> decode_pb2.SequenceOutput:
        self.running.discard(request_id)
        summary = decode_pb2.DecodeSummary(cached_tokens=8, queue_s=0.125, prefill_s=0.0, decode_s=2.0, decode_steps=3)
        return decode_pb2.SequenceOutput(request_id=request_id, finish_reason=reason, summary=summary)


def _reason(
    script: Script, token_count: int, sampling: common_pb2.SamplingParams
) -> "common_pb2.FinishReason.ValueType":
    if token_count == len(script.output):
        return common_pb2.FINISH_REASON_STOP
    if token_count == sampling.max_tokens:
        return common_pb2.FINISH_REASON_LENGTH
    return common_pb2.FINISH_REASON_UNSPECIFIED


def _logprobs(token_id: int, sampling: common_pb2.SamplingParams) -> common_pb2.TokenLogprobs | None:
    if not sampling.HasField("logprobs"):
        return None
    return common_pb2.TokenLogprobs(chosen=common_pb2.TokenProbability(token_id=token_id, logprob=-token_id / 100))


class FakeWorkerControl(worker_pb2_grpc.WorkerServiceServicer):
    """Notes who was told to drain; nothing follows from it."""

    def __init__(self, worker_id: str, told: list[str]) -> None:
        self._worker_id = worker_id
        self._told = told

    async def Drain(  # noqa: N802  # gRPC's name
        self, request: worker_pb2.DrainRequest, context: Any
    ) -> worker_pb2.DrainResponse:
        self._told.append(self._worker_id)
        return worker_pb2.DrainResponse(running_sequences=3)
