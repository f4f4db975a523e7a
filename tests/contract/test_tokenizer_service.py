"""The tokenizer service over gRPC, on a real aio server on loopback with the real model: answers and statuses."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import cache
from typing import Any

import grpc
import pytest

from forebay.errors import (
    Code,
    ForebayError,
    InvalidFieldError,
    RemoteError,
    TemplateFailedError,
    TokenOutOfRangeError,
    UnknownModelError,
    UnknownRoleError,
)
from forebay.models.default_model import resolve_model
from forebay.models.model_file import ModelFile, open_model
from forebay.rpc.channel import open_channel
from forebay.rpc.server import Server
from forebay.rpc.status import translated
from forebay.tokenizer.__main__ import SERVICE, SPAN_NAMES, build_servicer
from forebay.tokenizer.build import build_tokenizer
from forebay.tokenizer.chat_template import ChatTemplate
from forebay.tokenizer.encoder import TextEncoder
from forebay.tokenizer.servicer import TokenizerDescription, TokenizerServicer
from forebay.tokenizer.vocabulary import Vocabulary, read_vocabulary
from forebay.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from forebay.v1.tokenizer_pb2 import DetokenizeItem, DetokenizeOptions, DetokenizeRequest, EncodeInput

NAME = "SmolLM2-135M-Instruct"
FRANCE = "What is the capital of France?"
PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    f"<|im_start|>user\n{FRANCE}<|im_end|>\n<|im_start|>assistant\n"
)


@cache
def model() -> ModelFile:
    return open_model(resolve_model(None))


@cache
def tokenizer() -> Any:
    return build_tokenizer(model().tokenizer_source)


def ids(text: str) -> list[int]:
    found: list[int] = tokenizer().encode(text, add_special_tokens=False).ids
    return found


def chat(*messages: tuple[str, str]) -> EncodeInput:
    each = [tokenizer_pb2.ChatMessage(role=role, content=content) for role, content in messages]
    return EncodeInput(chat=tokenizer_pb2.ChatMessages(messages=each))


class Served:
    """A servicer behind a real server, and a stub to call it."""

    def __init__(self, servicer: TokenizerServicer) -> None:
        self.servicer = servicer
        self._server = Server("127.0.0.1:0", SPAN_NAMES)
        self._server.add(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, servicer, SERVICE)

    async def __aenter__(self) -> "Served":
        self._channel = open_channel(await self._server.start())
        self.stub = tokenizer_pb2_grpc.TokenizerServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()
        await self._server.stop(0)

    async def encode(self, encode_input: EncodeInput | None, name: str = "") -> list[int]:
        with translated():
            response = await self.stub.Encode(tokenizer_pb2.EncodeRequest(model=name, input=encode_input))
        return list(response.token_ids)

    async def encode_batch(self, inputs: list[EncodeInput]) -> list[list[int]]:
        with translated():
            response = await self.stub.EncodeBatch(tokenizer_pb2.EncodeBatchRequest(inputs=inputs))
        return [list(result.token_ids) for result in response.results]

    async def detokenize(self, *requests: list[DetokenizeItem]) -> list[list[tokenizer_pb2.DetokenizedText]]:
        """All requests at once, then their answers."""

        def sent() -> Iterator[DetokenizeRequest]:
            return (DetokenizeRequest(items=items) for items in requests)

        with translated():
            return [list(response.items) async for response in self.stub.Detokenize(sent())]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with Served(with_template(model().chat_template)) as served:
        yield served


@cache
def vocabulary() -> Vocabulary:
    return read_vocabulary(model().path, tokenizer(), 49_152)


def with_template(source: str | None) -> TokenizerServicer:
    """The real tokenizer with any chat template."""
    identity = TokenizerDescription(NAME, "0" * 32, (2,), 8192, has_chat_template=source is not None)
    return TokenizerServicer(identity, TextEncoder(tokenizer(), ChatTemplate(source, {})), vocabulary())


async def test_says_what_it_serves() -> None:
    async with Served(build_servicer(model())) as served:
        said = await served.stub.GetTokenizer(tokenizer_pb2.GetTokenizerRequest())
        assert await served.encode(chat(("user", FRANCE))) == ids(PROMPT)

    assert said == tokenizer_pb2.GetTokenizerResponse(
        model=NAME,
        model_digest=model().digest,
        vocabulary_size=49_152,
        eos_token_ids=[2],
        context_tokens=8_192,
        has_chat_template=True,
    )


async def test_says_when_there_is_no_template() -> None:
    async with Served(with_template(None)) as served:
        said = await served.stub.GetTokenizer(tokenizer_pb2.GetTokenizerRequest())
        assert not said.has_chat_template

        with pytest.raises(TemplateFailedError, match="the model has no chat template"):
            await served.encode(chat(("user", "x")))


@pytest.mark.parametrize("name", ["", NAME])
async def test_encodes_text(served: Served, name: str) -> None:
    assert await served.encode(EncodeInput(text=FRANCE), name) == ids(FRANCE)
    assert await served.encode(EncodeInput(text=""), name) == []


async def test_encodes_a_conversation_as_its_rendered_prompt(served: Served) -> None:
    assert await served.encode(chat(("user", FRANCE))) == ids(PROMPT)


@pytest.mark.parametrize("character_count", [4_096, 4_097, 200_000])
async def test_encodes_long_text_the_same(served: Served, character_count: int) -> None:
    text = ("naïve 漢字 1234\n" * (character_count // 10))[:character_count]

    assert await served.encode(EncodeInput(text=text)) == ids(text)


async def test_answers_while_a_long_text_is_encoded(served: Served) -> None:
    long = asyncio.create_task(served.encode(EncodeInput(text="word " * 400_000)))
    short_count = 0
    while not long.done():
        await served.encode(EncodeInput(text="short"))
        short_count += 1

    assert len(await long) == 400_001
    assert short_count > 10


async def test_encodes_a_batch_in_order(served: Served) -> None:
    results = await served.encode_batch([EncodeInput(text="b"), chat(("user", FRANCE)), EncodeInput(text="")])

    assert results == [ids("b"), ids(PROMPT), []]


async def test_a_batch_has_bounds(served: Served) -> None:
    assert len(await served.encode_batch([EncodeInput(text="a")] * 1_024)) == 1_024
    for size in (0, 1_025):
        with pytest.raises(InvalidFieldError) as refusal:
            await served.encode_batch([EncodeInput(text="a")] * size)
        assert refusal.value.field == "inputs"


REFUSED = {
    "nothing": (None, InvalidFieldError, "input"),
    "neither": (EncodeInput(), InvalidFieldError, "input"),
    "no message": (chat(), InvalidFieldError, "chat.messages"),
    "role": (chat(("user", "a"), ("User", "b")), UnknownRoleError, "chat.messages[1].role"),
}


@pytest.mark.parametrize(("encode_input", "kind", "field"), REFUSED.values(), ids=REFUSED.keys())
async def test_refuses_bad_input(
    served: Served, encode_input: EncodeInput | None, kind: type[ForebayError], field: str
) -> None:
    with pytest.raises(kind) as refusal:
        await served.encode(encode_input)

    assert refusal.value.field == field
    assert refusal.value.code is Code.INVALID_ARGUMENT
    assert await served.encode(EncodeInput(text=FRANCE)) == ids(FRANCE)


@pytest.mark.parametrize(("bad", "kind"), [(EncodeInput(), InvalidFieldError), (chat(("x", "")), UnknownRoleError)])
async def test_a_batch_fails_as_a_whole_and_names_the_index(
    served: Served, bad: EncodeInput, kind: type[ForebayError]
) -> None:
    with pytest.raises(kind) as refusal:
        await served.encode_batch([EncodeInput(text="a"), EncodeInput(text="b"), bad])

    assert refusal.value.metadata["index"] == "2"


async def test_refuses_another_model(served: Served) -> None:
    with pytest.raises(UnknownModelError, match=NAME) as refusal:
        await served.encode(EncodeInput(text="a"), "gpt-5")
    assert (refusal.value.field, refusal.value.code) == ("model", Code.NOT_FOUND)

    with pytest.raises(UnknownModelError), translated():
        await served.stub.EncodeBatch(tokenizer_pb2.EncodeBatchRequest(model="x", inputs=[EncodeInput(text="a")]))


async def test_a_failing_template_refuses_the_conversation_only() -> None:
    async with Served(with_template("{{ raise_exception('no tools') }}")) as served:
        with pytest.raises(TemplateFailedError, match="no tools") as refusal:
            await served.encode(chat(("user", "secret words")))

        assert "secret" not in refusal.value.message
        assert await served.encode(EncodeInput(text=FRANCE)) == ids(FRANCE)


async def test_refuses_a_request_of_more_than_16_mib(served: Served) -> None:
    with pytest.raises(RemoteError) as refusal:
        await served.encode(EncodeInput(text="x" * (17 << 20)))

    assert refusal.value.code is Code.RESOURCE_EXHAUSTED
    assert await served.encode(EncodeInput(text=FRANCE)) == ids(FRANCE)


def item(stream_id: int, token_ids: list[int], options: DetokenizeOptions | None = None, *, last: bool = False) -> Any:
    return DetokenizeItem(stream_id=stream_id, open=options, token_ids=token_ids, is_last=last)


async def test_every_request_is_answered_once_with_its_streams_in_order(served: Served) -> None:
    smile = ids("😀")
    assert len(smile) > 1
    opened = DetokenizeOptions()

    answers = await served.detokenize(
        [item(7, smile[:1], opened), item(3, ids("Hello"), opened)],
        [item(3, ids(" world")), item(7, smile[1:], last=True)],
        [],
        [item(3, [], last=True)],
    )

    assert [[(each.stream_id, each.text) for each in items] for items in answers] == [
        [(7, ""), (3, "Hello")],
        [(3, " world"), (7, "😀")],
        [],
        [(3, "")],
    ]
    assert not any(each.HasField("stop_match") for items in answers for each in items)


async def test_stop_strings_and_special_tokens(served: Served) -> None:
    tokens = ids("One. User: two")
    stop_count = next(count for count in range(len(tokens)) if "User" in tokenizer().decode(tokens[:count]))

    answers = await served.detokenize(
        [item(1, tokens, DetokenizeOptions(stop=["</s>", "User"])), item(2, [1, *tokens[:1], 2], DetokenizeOptions())],
        [item(1, ids("late")), item(2, [2], last=True)],
        [item(1, [1], DetokenizeOptions(keep_special_tokens=True), last=True)],
    )

    stopped, skipped = answers[0]
    assert (stopped.text, stopped.stop_match, stopped.stop_token_count) == ("One. ", "User", stop_count)
    assert skipped.text == "One"
    assert [each.text for each in answers[1]] == ["", ""]
    assert answers[2][0].text == "<|im_start|>"


OPEN = DetokenizeOptions()
BAD_REQUESTS = {
    "not open": ([item(1, [5])], InvalidFieldError, "items.stream_id"),
    "twice": ([item(1, [5], OPEN), item(1, [5])], InvalidFieldError, "items.stream_id"),
    "empty stop": ([item(1, [5], DetokenizeOptions(stop=[""]))], InvalidFieldError, "items.open.stop"),
    "long stop": ([item(1, [5], DetokenizeOptions(stop=["x" * 257]))], InvalidFieldError, "items.open.stop"),
    "many stops": ([item(1, [5], DetokenizeOptions(stop=["x"] * 17))], InvalidFieldError, "items.open.stop"),
    "token": ([item(1, [5, 49_152], OPEN)], TokenOutOfRangeError, "items.token_ids"),
}


@pytest.mark.parametrize(("items", "kind", "field"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
async def test_a_bad_item_ends_the_stream(
    served: Served, items: list[DetokenizeItem], kind: type[ForebayError], field: str
) -> None:
    with pytest.raises(kind) as refusal:
        await served.detokenize([item(9, [5], OPEN)], items)

    assert refusal.value.field == field
    assert len(await served.detokenize([item(9, [5], OPEN, last=True)])) == 1


async def test_is_idle_once_streams_end_or_their_call_is_cancelled(served: Served) -> None:
    await served.servicer.wait_idle()
    call = served.stub.Detokenize()
    await call.write(DetokenizeRequest(items=[item(1, [5], OPEN), item(2, [5], OPEN)]))
    await call.read()
    idle = asyncio.create_task(served.servicer.wait_idle())

    await call.write(DetokenizeRequest(items=[item(1, [], last=True)]))
    await call.read()
    assert not idle.done()

    call.cancel()
    await asyncio.wait_for(idle, 5)
    assert await call.code() is grpc.StatusCode.CANCELLED


async def test_streams_of_two_calls_do_not_meet(served: Served) -> None:
    first = served.stub.Detokenize()
    await first.write(DetokenizeRequest(items=[item(1, ids("Hello"), OPEN)]))
    await first.read()

    with pytest.raises(InvalidFieldError):
        await served.detokenize([item(1, ids(" world"))])

    await first.write(DetokenizeRequest(items=[item(1, ids(" world"), last=True)]))
    assert (await first.read()).items[0].text == " world"
    await first.done_writing()
    assert await first.code() is grpc.StatusCode.OK
