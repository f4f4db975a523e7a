"""Two routers asked the same: the one that has the first token is heard, the other's call ends."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from forebay.client.assembly import Assembly


@dataclass(frozen=True, slots=True, eq=False)
class Runner:
    """A call to one router, and what has come of it."""

    target: str
    call: Any
    assembly: Assembly


class Race:
    """began_s: of the request, by `time.monotonic`. `end` it in any case."""

    def __init__(self, runner: Runner, began_s: float) -> None:
        self._runners = [runner]
        self._began_s = began_s
        self._reading: dict[asyncio.Task[Any], Runner] = {}
        self.winner: Runner | None = None

    async def first(self, after_s: float, second: Callable[[], Runner | None]) -> Any:
        """The event of the first token, or of an end, which the winner's assembly has not seen yet.

        after_s: so long the first runs alone; then `second` makes another, if it can.
        Raises grpc.RpcError of the last runner where all have failed; it is the winner then.
        """
        self._read(self._runners[0])
        starts_s: float | None = time.monotonic() + after_s
        while True:
            timeout_s = None if starts_s is None else max(0.0, starts_s - time.monotonic())
            done, _ = await asyncio.wait(self._reading, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not done:
                starts_s = None
                other = second()
                if other is not None:
                    self._runners.append(other)
                    self._read(other)
            for task in done:
                runner = self._reading.pop(task)
                if task.exception() is not None and len(self._runners) > 1:
                    self._runners.remove(runner)  # the other may do better
                    runner.call.cancel()
                    continue
                if task.exception() is not None or _decides(task.result()):
                    self.winner = runner
                    return task.result()
                event = task.result()
                runner.assembly.add(event, time.monotonic() - self._began_s)
                self._read(runner)

    def end(self) -> None:
        """Ends every call but the winner's. Idempotent."""
        for task in self._reading:
            task.cancel()
        for runner in self._runners:
            if runner is not self.winner:
                runner.call.cancel()

    def _read(self, runner: Runner) -> None:
        self._reading[asyncio.ensure_future(runner.call.read())] = runner


def _decides(event: Any) -> bool:
    """Whether it is a first token, or an end."""
    if event is grpc.aio.EOF:
        return True
    return event.WhichOneof("event") == "finished" or bool(event.chunk.token_ids)
