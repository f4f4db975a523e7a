"""A load that is to notice one wrong token notices it."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from forebay.client import Chunk
from forebay.errors import Code, DeadlineExceededError, RemoteError, WorkerLostError
from forebay.testing.known_answers import KnownAnswer, Question
from forebay.testing.steady_load import SteadyLoad, Verdict
from forebay.testing.waiting import until

RIGHT = (5, 6, 7)
TEXT = "efg"  # of these tokens
TEXT_ALONE = 1  # comes as text without a token
WHOLE = [RIGHT[:1], RIGHT[1:]]


class ScriptedStream:
    """Says these tokens, then ends with this error, if with any."""

    plan = None
    resume_count = 1
    completion = SimpleNamespace(recomputed_tokens=3, failover_count=2)

    def __init__(self, chunks: Sequence[tuple[int, ...]], error: Exception | None) -> None:
        self._chunks, self._error = chunks, error

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        for token_ids in self._chunks:
            await asyncio.sleep(0)  # as if it came from elsewhere
            text = "".join(chr(ord("`") + token_id) for token_id in token_ids)
            yield Chunk(text, tuple(token_id for token_id in token_ids if token_id != TEXT_ALONE))
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        pass


class ScriptedClient:
    """Answers every request alike."""

    def __init__(self, chunks: Sequence[tuple[int, ...]], error: Exception | None) -> None:
        self._script = chunks, error

    def stream(self, prompt: list[int], **options: Any) -> ScriptedStream:
        return ScriptedStream(*self._script)


@pytest.mark.parametrize(
    ("chunks", "error", "verdict", "reason"),
    [
        (WHOLE, None, Verdict.GOOD, None),
        ([RIGHT[:2]], None, Verdict.WRONG, None),
        ([*WHOLE, (8,)], None, Verdict.WRONG, None),
        ([*WHOLE, (TEXT_ALONE,)], None, Verdict.WRONG, None),
        ([(5, TEXT_ALONE)], WorkerLostError("gone"), Verdict.WRONG, "WORKER_LOST"),
        ([(5, 9)], WorkerLostError("gone"), Verdict.WRONG, "WORKER_LOST"),
        ([(5, 6)], WorkerLostError("gone"), Verdict.FAILED, "WORKER_LOST"),
        ([], RemoteError(Code.UNAVAILABLE, "reset"), Verdict.FAILED, "REMOTE UNAVAILABLE"),
        (WHOLE, WorkerLostError("gone"), Verdict.FAILED, "WORKER_LOST"),
        ([(5,)], DeadlineExceededError("late"), Verdict.HUNG, "DeadlineExceededError"),
    ],
)
async def test_every_end_is_told_from_the_others(
    chunks: list[tuple[int, ...]], error: Exception | None, verdict: Verdict, reason: str | None
) -> None:
    client: Any = ScriptedClient(chunks, error)
    load = SteadyLoad(client, [KnownAnswer(Question((1, 2), {}), RIGHT, TEXT)], random.Random(1))
    async with load.running(1):
        await until(lambda: load.outcomes)
        await load.pause()
    assert (load.outcomes[0].verdict, load.outcomes[0].reason) == (verdict, reason)
    assert load.outcomes[0].resume_count == 1
    assert load.outcomes[0].began_s <= load.outcomes[0].ended_s
    assert (load.first_good_s(0) is not None) == (verdict is Verdict.GOOD)
