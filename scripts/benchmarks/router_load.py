"""Requests to routers from a process of its own, as many at a time as it is told. Answers `router`'s questions.

Knows the bare stub, not the SDK: what the client costs is not what is measured, and both share the machine's cores.
"""

import asyncio
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from forebay.rpc.channel import open_channel
from forebay.v1 import common_pb2, router_pb2, router_pb2_grpc
from scripts.benchmarks.answering import Answer, answer_all, claim_stdout

_WORDS: Final = tuple(
    word
    for word in (Path(__file__).parent / "texts" / "prose.txt").read_text(encoding="utf-8").split()
    if word.isalpha() and word.islower()
)


@dataclass(slots=True)
class _Heard:
    """Of the requests that have ended."""

    first_token_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    tokens: int = 0
    chunks: int = 0


class _Callers:
    """So many callers, each asking its router again as soon as it has its answer."""

    def __init__(self, stubs: Sequence[Any], output_tokens: int, prompt_words: int) -> None:
        self._stubs = stubs
        self._sampling = common_pb2.SamplingParams(max_tokens=output_tokens, temperature=0.0, ignore_eos=True)
        self._prompt_words = prompt_words
        self._numbers = random.Random()
        self.heard = _Heard()

    async def run(self, concurrency: int, seconds: float) -> None:
        """Until the seconds are over and what was asked by then is answered."""
        end_s = time.perf_counter() + seconds
        await asyncio.gather(*(self._ask_until(end_s, index) for index in range(concurrency)))

    async def _ask_until(self, end_s: float, index: int) -> None:
        stub = self._stubs[index % len(self._stubs)]
        while time.perf_counter() < end_s:
            await self._ask(stub)

    async def _ask(self, stub: Any) -> None:
        text = " ".join(self._numbers.choices(_WORDS, k=self._prompt_words))
        request = router_pb2.GenerateRequest(text=text, sampling=self._sampling)
        began_s, has_begun, heard = time.perf_counter(), False, self.heard
        async for response in stub.Generate(request):
            if response.HasField("chunk"):
                heard.chunks += 1
                heard.tokens += len(response.chunk.token_ids)
                if not has_begun:
                    has_begun = True
                    heard.first_token_s.append(time.perf_counter() - began_s)
            elif response.HasField("started"):
                heard.prompt_tokens += response.started.prompt_tokens


async def _load(command: dict[str, Any]) -> Answer:
    channels = [open_channel(address) for address in command["addresses"]]
    try:
        stubs = [router_pb2_grpc.RouterServiceStub(channel) for channel in channels]
        callers = _Callers(stubs, command["output_tokens"], command["prompt_words"])
        cpu_s, began_s = _cpu_s(), time.perf_counter()
        await callers.run(command["concurrency"], command["seconds"])
        seconds, heard = time.perf_counter() - began_s, callers.heard
    finally:
        for channel in channels:
            await channel.close()
    return {
        "seconds": seconds,
        "cpu_s": _cpu_s() - cpu_s,
        "requests": len(heard.first_token_s),
        "tokens": heard.tokens,
        "chunks": heard.chunks,
        "prompt_tokens": heard.prompt_tokens,
        "first_token_s": heard.first_token_s,
    }


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    answer_all(claim_stdout(), "router load", {"load": lambda command: asyncio.run(_load(command))})
