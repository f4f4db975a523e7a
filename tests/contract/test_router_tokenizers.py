"""The tokenizer replicas as a router uses them: silent ones, ones that leave, and none left."""

import asyncio

import pytest

from forebay.errors import ForebayError, NoWorkerError
from forebay.fleet.member import Member
from forebay.role import Role
from forebay.router.tokenizers import Patience, Tokenizers
from forebay.testing.scripted_fleet import ScriptedFleet
from forebay.testing.scripted_workers import FakeTokenizer, Script
from forebay.testing.waiting import until
from forebay.v1 import tokenizer_pb2


class TextSink:
    """Hears a token stream."""

    def __init__(self) -> None:
        self.text = ""
        self.error: ForebayError | None = None

    def on_text(self, text: str, token_count: int, stop_match: str | None, is_last: bool) -> None:
        self.text += text

    def on_text_failed(self, error: ForebayError) -> None:
        self.error = error


def tokenizers_of(fleet: ScriptedFleet) -> list[Member]:
    return [member for member in fleet.members.values() if member.role is Role.TOKENIZER]


async def until_usable(tokenizers: Tokenizers, count: int) -> None:
    await until(lambda: sum(replica.is_usable for replica in tokenizers._replicas.values()) == count)


async def see_both(tokenizers: Tokenizers, fleet: ScriptedFleet) -> None:
    """Of equally busy replicas the one seen first, tokenizer-1, is asked first."""
    for count in (1, 2):
        tokenizers.update(tokenizers_of(fleet)[:count])
        await until_usable(tokenizers, count)


HELLO = tokenizer_pb2.EncodeInput(text="hello")


async def test_text_that_no_tokenizer_is_left_for_fails() -> None:
    tokenizers = Tokenizers(lambda: None, Patience(replay_s=0.05))
    sinks = [TextSink(), TextSink()]
    streams = [tokenizers.open_stream(tokenizer_pb2.DetokenizeOptions(), sink) for sink in sinks]
    for stream in streams:
        stream.push([ord("h")], is_last=False)
        tokenizers.send(stream)
    tokenizers.forget(streams[1])
    await until(lambda: sinks[0].error)
    assert isinstance(sinks[0].error, NoWorkerError)
    assert sinks[0].error.metadata["role"] == "tokenizer"
    assert sinks[1].error is None, "nobody waits for it"


async def test_text_that_waited_for_a_tokenizer_is_not_given_up_later() -> None:
    patience = Patience(replay_s=2.0)
    async with ScriptedFleet() as fleet:
        tokenizers, nobody = Tokenizers(lambda: None, patience), Tokenizers(lambda: None, patience)
        sinks = [TextSink(), TextSink()]
        streams = []
        for ones, sink in zip((tokenizers, nobody), sinks, strict=True):
            stream = ones.open_stream(tokenizer_pb2.DetokenizeOptions(), sink)
            stream.push([ord("h")], is_last=False)
            ones.send(stream)
            streams.append(stream)
        tokenizers.update(tokenizers_of(fleet))
        await until(lambda: sinks[1].error)
        streams[0].push([ord("i")], is_last=True)
        tokenizers.send(streams[0])
        await until(lambda: sinks[0].text == "hi")
        assert sinks[0].error is None
        await tokenizers.close()


async def test_encode_passes_over_a_replica_that_does_not_answer() -> None:
    script = Script()
    script.has_encoded.clear()
    async with ScriptedFleet(script) as fleet:
        await fleet.add(Role.TOKENIZER, "tokenizer-2", FakeTokenizer(Script()))
        tokenizers = Tokenizers(lambda: None, Patience(encode_s=0.05, last_encode_s=20.0))
        await see_both(tokenizers, fleet)
        for _ in range(2):
            assert await tokenizers.encode("", HELLO) == [ord(character) for character in "hello"]
        await tokenizers.close()


async def test_encode_says_so_when_no_replica_answers() -> None:
    script = Script()
    script.has_encoded.clear()
    async with ScriptedFleet(script) as fleet:
        tokenizers = Tokenizers(lambda: None, Patience(last_encode_s=0.05))
        tokenizers.update(tokenizers_of(fleet))
        await until_usable(tokenizers, 1)
        with pytest.raises(NoWorkerError):
            await tokenizers.encode("", HELLO)
        await tokenizers.close()


async def test_encode_goes_on_when_its_replica_leaves_the_fleet() -> None:
    script = Script()
    script.has_encoded.clear()
    async with ScriptedFleet(script) as fleet:
        await fleet.add(Role.TOKENIZER, "tokenizer-2", FakeTokenizer(Script()))
        tokenizers = Tokenizers(lambda: None, Patience(encode_s=20.0))
        await see_both(tokenizers, fleet)
        encoding = asyncio.create_task(tokenizers.encode("", HELLO))
        await until(lambda: fleet.tokenizer.encoding)
        del fleet.members["tokenizer-1"]
        tokenizers.update(tokenizers_of(fleet))
        assert await encoding == [ord(character) for character in "hello"]
        await tokenizers.close()


async def test_an_encode_that_is_cancelled_asks_nobody_else() -> None:
    script = Script()
    script.has_encoded.clear()
    async with ScriptedFleet(script) as fleet:
        second = FakeTokenizer(script)
        await fleet.add(Role.TOKENIZER, "tokenizer-2", second)
        tokenizers = Tokenizers(lambda: None)
        await see_both(tokenizers, fleet)
        encoding = asyncio.create_task(tokenizers.encode("", HELLO))
        await until(lambda: fleet.tokenizer.encoding)
        encoding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await encoding
        await until(lambda: not fleet.tokenizer.encoding)
        assert not second.encoding
        await tokenizers.close()
