"""Requests cancelled at every phase: what is left of them, and what the next request notices.

A mesh of one prefill and one decode worker with four places. In each phase `--rounds` requests are ended by their
caller: as they are sent; while they wait for room; at a random moment of their prompt, SPLIT and LOCAL; with the first
token, when SPLIT hands over; in the middle of their text; within 50 ms of their end; and in the middle by Cancel from
elsewhere, and by a caller whose connection is gone. Right after each a short request is sent. It is to be no more than
100 ms later than the same one on a quiet mesh, which is measured in the same rounds. After every tenth the mesh has a
second to hold nothing: no block leased, none in use.

Examples:
  scripts/bench cancels --rounds 1000    a thousand of each phase, half an hour
  scripts/bench cancels                  125 of each, some three minutes
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from forebay.client import AsyncClient, CompletionStream, RequestCancelledError
from forebay.testing.held_blocks import RELEASED_S, held_blocks
from forebay.testing.mesh import RunningMesh, running_mesh
from scripts.benchmarks.bare_engine import random_prompt
from scripts.benchmarks.options import Options
from scripts.benchmarks.report import Figure, median, percentile, report

_PLACES: Final = 4
_PROMPT, _LONG_PROMPT, _OUTPUT = 40, 600, 60
_FOLLOW_UP_PROMPT: Final = 16
_LOOKED_AT_EVERY: Final = 10
_MOST_PREFILL_S: Final = 0.4
_DELAYED_AT_MOST_MS: Final = 100.0


@dataclass(slots=True)
class _Phase:
    """Of one phase. delays_s: follow-up requests, less the quiet ones' median."""

    follow_ups_s: list[float] = field(default_factory=list)
    leaked_blocks: int = 0
    late_count: int = 0  # had ended before they were cancelled


class _Canceller:
    """Ends requests at the moment that a phase's name says."""

    def __init__(self, client: AsyncClient, address: str, numbers: random.Random) -> None:
        self._client, self._address, self._numbers = client, address, numbers
        self._whole_s = 0.0  # what a request takes that nobody cancels
        self.phases: dict[str, Callable[[], Awaitable[bool]]] = {
            "as it is sent": lambda: self._after(self._numbers.random() * 0.004, _PROMPT),
            "while it waits for room": self._waiting,
            "in its prompt, SPLIT": lambda: self._after(self._in_prompt_s(), _LONG_PROMPT, mode="split"),
            "in its prompt, LOCAL": lambda: self._after(self._in_prompt_s(), _LONG_PROMPT, mode="local"),
            "at the hand-over": lambda: self._at_token(1, mode="split"),
            "in its text": lambda: self._at_token(self._numbers.randrange(2, _OUTPUT // 2)),
            "at about its end": lambda: self._after(self._whole_s + self._numbers.uniform(-0.05, 0.0), _PROMPT),
            "by Cancel from elsewhere": self._from_elsewhere,
            "by a connection that is gone": self._vanishing,
        }

    async def learn(self) -> None:
        """How long a request takes."""
        seconds = []
        for _ in range(5):
            began_s = time.perf_counter()
            await self._stream(_PROMPT).finish()
            seconds.append(time.perf_counter() - began_s)
        self._whole_s = median(seconds)

    def _in_prompt_s(self) -> float:
        return self._numbers.random() * _MOST_PREFILL_S

    def _stream(self, prompt_tokens: int, client: AsyncClient | None = None, **options: Any) -> CompletionStream:
        prompt = random_prompt(self._numbers, prompt_tokens)
        fixed = {"max_tokens": _OUTPUT, "temperature": 0, "ignore_eos": True, "timeout_s": 60}
        return (client or self._client).stream(prompt, **(fixed | options))

    async def _after(self, seconds: float, prompt_tokens: int, **options: Any) -> bool:
        """Whether it still ran."""
        task = asyncio.create_task(self._stream(prompt_tokens, **options).finish())
        await asyncio.wait([task], timeout=seconds)
        return await _cancelled(task)

    async def _at_token(self, count: int, **options: Any) -> bool:
        stream, seen = self._stream(_PROMPT, **options), 0
        async with stream:
            async for chunk in stream:
                seen += len(chunk.token_ids)
                if seen >= count:
                    return seen < _OUTPUT
        return False

    async def _waiting(self) -> bool:
        async with self._full():
            return await self._after(self._numbers.random() * 0.05, _PROMPT)

    async def _from_elsewhere(self) -> bool:
        stream, is_asked = self._stream(_PROMPT), False
        try:
            async with stream:
                async for chunk in stream:
                    if chunk.token_ids and stream.request_id and not is_asked:
                        is_asked = True
                        await self._client.cancel(stream.request_id)
        except RequestCancelledError:
            return True
        return False

    async def _vanishing(self) -> bool:
        client = AsyncClient(self._address)
        stream = self._stream(_PROMPT, client)
        async for chunk in stream:
            if chunk.token_ids:
                break
        await client.aclose()
        return True

    @asynccontextmanager
    async def _full(self) -> AsyncIterator[None]:
        """Inside the block every place of the decode worker is taken."""
        holders = [self._stream(_PROMPT, max_tokens=2_000) for _ in range(_PLACES)]
        for one in holders:
            async for chunk in one:
                if chunk.token_ids:
                    break
        try:
            yield
        finally:
            for one in holders:
                one.close()


def run(options: Options) -> None:
    """`rounds` cancels in each phase."""
    flags = {"decode": ("--max-sequences", str(_PLACES))}
    with running_mesh(extra_arguments=flags) as mesh:
        quiet_s, phases = asyncio.run(_all(mesh, options.rounds))
    quiet_ms = 1e3 * median(quiet_s)
    figures = [Figure("short request on a quiet mesh, p50", quiet_ms, "ms")]
    for name, phase in phases.items():
        delays = [1e3 * seconds - quiet_ms for seconds in phase.follow_ups_s]
        figures += [
            Figure(f"{name}: cancelled", len(delays) - phase.late_count, ""),
            *(
                Figure(
                    f"{name}:   the next is delayed, p{percent}",
                    percentile(delays, percent),
                    "ms",
                    f"<= {_DELAYED_AT_MOST_MS:g}",
                )
                for percent in (50, 99)
            ),
            Figure(f"{name}:   blocks leaked", phase.leaked_blocks, "", "<= 0"),
        ]
    report("cancels", figures)


async def _all(mesh: RunningMesh, rounds: int) -> tuple[list[float], dict[str, _Phase]]:
    numbers = random.Random(13)  # prompts and moments, not secrets
    quiet_s: list[float] = []
    async with AsyncClient(mesh.router_address) as client:
        canceller = _Canceller(client, mesh.router_address, numbers)
        phases = {name: _Phase() for name in canceller.phases}
        for _ in range(3):
            await _follow_up_s(client, numbers)
        await canceller.learn()
        for number in range(1, rounds + 1):
            quiet_s.append(await _follow_up_s(client, numbers))
            for name, cancel in canceller.phases.items():
                phase = phases[name]
                phase.late_count += not await cancel()
                phase.follow_ups_s.append(await _follow_up_s(client, numbers))
                if number % _LOOKED_AT_EVERY == 0 or number == rounds:
                    phase.leaked_blocks += await held_blocks(mesh.address_of("kvcache"), RELEASED_S)
    return quiet_s, phases


async def _follow_up_s(client: AsyncClient, numbers: random.Random) -> float:
    began_s = time.perf_counter()
    await client.generate(
        random_prompt(numbers, _FOLLOW_UP_PROMPT), max_tokens=1, temperature=0, ignore_eos=True, timeout_s=60
    )
    return time.perf_counter() - began_s


async def _cancelled(task: "asyncio.Task[Any]") -> bool:
    if task.done():
        task.result()
        return False
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return True
