"""TokenizerService: protos to the encoder and the token streams, and back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from grpc.aio import ServicerContext

from forebay.errors import InvalidFieldError, UnknownModelError
from forebay.tokenizer.chat_template import Message
from forebay.tokenizer.detokenizer import TokenStreamOptions
from forebay.tokenizer.encoder import EncodeInput, TextEncoder
from forebay.tokenizer.open_streams import OpenStreams
from forebay.tokenizer.vocabulary import Vocabulary
from forebay.v1 import tokenizer_pb2, tokenizer_pb2_grpc

_MAX_BATCH = 1_024


@dataclass(frozen=True, slots=True)
class TokenizerDescription:
    """What GetTokenizer says."""

    name: str
    digest: str
    eos_token_ids: tuple[int, ...]
    context_tokens: int
    has_chat_template: bool


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Serves one model's tokenizer."""

    def __init__(self, model: TokenizerDescription, encoder: TextEncoder, vocabulary: Vocabulary) -> None:
        """Takes what it serves."""
        self._model = model
        self._encoder = encoder
        self._vocabulary = vocabulary
        self._calls: set[OpenStreams] = set()
        self._advanced = asyncio.Event()

    async def wait_idle(self) -> None:
        """Returns when no token stream is open."""
        while any(map(len, self._calls)):
            self._advanced.clear()
            await self._advanced.wait()

    async def Encode(
        self, request: tokenizer_pb2.EncodeRequest, context: ServicerContext[Any, Any]
    ) -> tokenizer_pb2.EncodeResponse:
        """One input."""
        self._check_model(request.model)
        (token_ids,) = await self._encoder.encode([_to_input(request.input, "input")])
        return tokenizer_pb2.EncodeResponse(token_ids=token_ids)

    async def EncodeBatch(
        self, request: tokenizer_pb2.EncodeBatchRequest, context: ServicerContext[Any, Any]
    ) -> tokenizer_pb2.EncodeBatchResponse:
        """Many inputs, all or none."""
        self._check_model(request.model)
        if not 1 <= len(request.inputs) <= _MAX_BATCH:
            raise InvalidFieldError(f"a batch has 1..{_MAX_BATCH} inputs", field="inputs")
        inputs = [_to_input(each, f"inputs[{index}]", index) for index, each in enumerate(request.inputs)]
        results = await self._encoder.encode(inputs)
        return tokenizer_pb2.EncodeBatchResponse(
            results=[tokenizer_pb2.EncodeResponse(token_ids=token_ids) for token_ids in results]
        )

    async def Detokenize(
        self, request_iterator: AsyncIterator[tokenizer_pb2.DetokenizeRequest], context: ServicerContext[Any, Any]
    ) -> AsyncIterator[tokenizer_pb2.DetokenizeResponse]:
        """One response per request; the streams end with the call."""
        streams = OpenStreams(self._vocabulary)
        self._calls.add(streams)
        try:
            async for request in request_iterator:
                yield _detokenize(streams, request)
                self._advanced.set()
        finally:
            self._calls.discard(streams)
            self._advanced.set()

    async def GetTokenizer(
        self, request: tokenizer_pb2.GetTokenizerRequest, context: ServicerContext[Any, Any]
    ) -> tokenizer_pb2.GetTokenizerResponse:
        """What is served."""
        return tokenizer_pb2.GetTokenizerResponse(
            model=self._model.name,
            model_digest=self._model.digest,
            vocabulary_size=len(self._vocabulary),
            eos_token_ids=self._model.eos_token_ids,
            context_tokens=self._model.context_tokens,
            has_chat_template=self._model.has_chat_template,
        )

    def _check_model(self, name: str) -> None:
        if name not in ("", self._model.name):
            raise UnknownModelError(f"this tokenizer serves {self._model.name} only", field="model")


def _to_input(proto: tokenizer_pb2.EncodeInput, field: str, index: int | None = None) -> EncodeInput:
    match proto.WhichOneof("input"):
        case "text":
            return proto.text
        case "chat":
            return [Message(message.role, message.content) for message in proto.chat.messages]
        case _:
            error = InvalidFieldError("one of text and chat must be set", field=field)
            if index is not None:
                error.metadata["index"] = str(index)
            raise error


def _detokenize(streams: OpenStreams, request: tokenizer_pb2.DetokenizeRequest) -> tokenizer_pb2.DetokenizeResponse:
    response = tokenizer_pb2.DetokenizeResponse()
    seen: set[int] = set()
    for item in request.items:
        if item.stream_id in seen:
            raise InvalidFieldError(f"stream {item.stream_id} comes twice in one request", field="items.stream_id")
        seen.add(item.stream_id)
        if item.HasField("open"):
            options = TokenStreamOptions(tuple(item.open.stop), item.open.keep_special_tokens)
            streams.open(item.stream_id, options)
        delta = streams.push(item.stream_id, item.token_ids, is_last=item.is_last)
        response.items.add(
            stream_id=item.stream_id,
            text=delta.text,
            stop_match=delta.stop_match,
            stop_token_count=delta.stop_token_count,
        )
    return response
