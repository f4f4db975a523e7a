"""`forebay chat` against a scripted router: what it prints, and the exit code that a script sees."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator, Sequence

from forebay.errors import ContextExceededError
from forebay.testing.fake_router import FakeRouter, Step, chunk, finished, serving, started

ANSWER: Sequence[Step] = (started(), chunk("Well, ", 5, logprob=-0.5), chunk("hello.", 6, logprob=-0.25), finished())
REFUSAL: Sequence[Step] = (ContextExceededError("the conversation is too long", field="chat"),)


class InTurn:
    """Other steps at each call."""

    def __init__(self, *plays: Sequence[Step]) -> None:
        self._plays = iter(plays)

    def __iter__(self) -> Iterator[Step]:
        return iter(next(self._plays))


async def chat(router: FakeRouter, *arguments: str, typed: str = "") -> tuple[int | None, str, str]:
    """Exit code, output and errors of `forebay chat`."""
    async with serving(router) as address:
        command = (sys.executable, "-m", "forebay.cli", "chat", "--target", address, *arguments)
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        output, errors = await asyncio.wait_for(process.communicate(typed.encode()), 60)
    return process.returncode, output.decode(), errors.decode()


async def test_a_failed_turn_is_seen_by_its_exit_code_and_the_conversation_goes_on() -> None:
    router = FakeRouter(InTurn(ANSWER, REFUSAL, ANSWER))
    code, output, errors = await chat(router, typed="one\ntwo\nthree\n")
    assert code == 1
    assert output == "Well, hello.\n" * 2
    assert errors.count("forebay: the conversation is too long (CONTEXT_EXCEEDED)\n") == 1
    said = [message.content for message in router.requests[-1].chat.messages]
    assert said == ["one", "Well, hello.", "three"]


async def test_a_conversation_that_went_well_exits_with_0() -> None:
    code, output, _ = await chat(FakeRouter(ANSWER), typed="one\n\ntwo\n")
    assert (code, output) == (0, "Well, hello.\n" * 2)


async def test_one_message_as_json_has_its_logprobs() -> None:
    router = FakeRouter(ANSWER)
    code, output, errors = await chat(router, "Say hello.", "--logprobs", "1", "--json")
    result = json.loads(output)
    assert (code, errors) == (0, "")
    assert router.requests[0].sampling.logprobs == 1
    assert (result["text"], result["token_ids"]) == ("Well, hello.", [5, 6])
    assert [entry["chosen"]["logprob"] for entry in result["logprobs"]] == [-0.5, -0.25]


async def test_a_conversation_as_json_has_a_line_per_turn() -> None:
    code, output, errors = await chat(FakeRouter(ANSWER), "--json", typed="one\ntwo\n")
    assert (code, errors) == (0, "")
    assert [json.loads(line)["text"] for line in output.splitlines()] == ["Well, hello."] * 2
