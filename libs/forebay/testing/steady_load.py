"""Constant load of questions whose answers are known, and how each request ended. Knows nothing of what disturbs it."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from forebay.client import AsyncClient, CompletionStream, Plan
from forebay.errors import DeadlineExceededError, ForebayError, RemoteError
from forebay.testing.known_answers import KnownAnswer
from forebay.testing.waiting import until

DEADLINE_S: Final = 20.0
_GRACE_S: Final = 2.0  # after which a request that has not ended by its deadline has no end
_PACE_S: Final = 0.05  # between a refusal and the next request, or there would be thousands


class Verdict(StrEnum):
    """How a request ended. Failed: with an error after none but right tokens. Hung: at its deadline, or not at all."""

    GOOD = "good"
    FAILED = "failed"
    WRONG = "wrong"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. reason: of its error; None: it had none. Times are of `time.monotonic`.

    resume_count: how often another router went on with it. recomputed_tokens, failover_count: see Completion.
    arrivals: when tokens came, and how many at once.
    """

    began_s: float
    ended_s: float
    verdict: Verdict
    reason: str | None = None
    resume_count: int = 0
    recomputed_tokens: int = 0
    failover_count: int = 0
    arrivals: tuple[tuple[float, int], ...] = ()

    @property
    def longest_pause_s(self) -> float:
        """Between two arrivals of tokens; 0: there were none."""
        times_s = [at_s for at_s, _ in self.arrivals]
        return max((after - before for before, after in itertools.pairwise(times_s)), default=0.0)


@dataclass(slots=True)
class OpenRequest:
    """A request under way."""

    answer: KnownAnswer
    stream: CompletionStream
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    arrivals: list[tuple[float, int]] = field(default_factory=list)

    @property
    def plan(self) -> Plan | None:
        """None until the router has said it."""
        return self.stream.plan


class SteadyLoad:
    """So many requests at any time, each streamed and compared with what is right, until it is paused."""

    def __init__(self, client: AsyncClient, answers: Sequence[KnownAnswer], source: random.Random) -> None:
        self._client, self._answers, self._source = client, answers, source
        self._go = asyncio.Event()
        self.requests: dict[int, OpenRequest] = {}
        self.outcomes: list[Outcome] = []
        self._asked_count = 0

    @asynccontextmanager
    async def running(self, concurrency: int) -> AsyncIterator[None]:
        """Asks until the block is left; raises what goes wrong with the asking itself."""
        async with asyncio.TaskGroup() as group:
            self._go.set()
            lanes = [group.create_task(self._ask_for_ever()) for _ in range(concurrency)]
            yield
            await self.pause()
            for lane in lanes:
                lane.cancel()

    async def pause(self) -> None:
        """Returns when what was under way has ended."""
        self._go.clear()
        await until(lambda: not self.requests, timeout_s=DEADLINE_S + 2 * _GRACE_S)

    def resume(self) -> None:
        """Asks again."""
        self._go.set()

    def first_good_s(self, since_s: float) -> float | None:
        """When the first that began then or later ended well."""
        good = (one for one in self.outcomes if one.verdict is Verdict.GOOD and one.began_s >= since_s)
        return next((one.ended_s for one in good), None)

    async def _ask_for_ever(self) -> None:
        while True:
            await self._go.wait()
            outcome = await self._ask(self._source.choice(self._answers))
            self.outcomes.append(outcome)
            if outcome.verdict is not Verdict.GOOD:
                await asyncio.sleep(_PACE_S)

    async def _ask(self, answer: KnownAnswer) -> Outcome:
        self._asked_count += 1
        number, began_s = self._asked_count, time.monotonic()
        options = answer.question.options | {"timeout_s": DEADLINE_S}
        stream = self._client.stream(list(answer.question.prompt), **options)
        request = self.requests[number] = OpenRequest(answer, stream)
        try:
            verdict, reason = await _judged(request)
        finally:
            del self.requests[number]
            stream.close()
        completion = stream.completion if verdict is Verdict.GOOD else None
        return Outcome(
            began_s,
            time.monotonic(),
            verdict,
            reason,
            stream.resume_count,
            recomputed_tokens=0 if completion is None else completion.recomputed_tokens,
            failover_count=0 if completion is None else completion.failover_count,
            arrivals=tuple(request.arrivals),
        )


async def _judged(request: OpenRequest) -> tuple[Verdict, str | None]:
    """Reads a request to its end."""
    answer, reason = request.answer, None
    try:
        async with asyncio.timeout(DEADLINE_S + _GRACE_S):
            async for chunk in request.stream:
                request.token_ids += chunk.token_ids
                if chunk.token_ids:
                    request.arrivals.append((time.monotonic(), len(chunk.token_ids)))
                request.text += chunk.text
    except (TimeoutError, DeadlineExceededError) as error:
        return Verdict.HUNG, type(error).__name__
    except ForebayError as error:
        reason = f"{error.reason} {error.code.name}" if isinstance(error, RemoteError) else error.reason
    heard, text = tuple(request.token_ids), request.text
    is_whole = (heard, text) == (answer.token_ids, answer.text)
    is_right_so_far = heard == answer.token_ids[: len(heard)] and answer.text.startswith(text)
    if not (is_whole if reason is None else is_right_so_far):
        return Verdict.WRONG, reason
    return (Verdict.GOOD, None) if reason is None else (Verdict.FAILED, reason)
