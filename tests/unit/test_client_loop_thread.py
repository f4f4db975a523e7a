"""Coroutines run for plain code: their results, their errors, and what an interrupt leaves behind: nothing."""

import asyncio
import contextvars
import threading
from collections.abc import Iterator

import pytest

from forebay.client.loop_thread import LoopThread

SOON_S = 20.0


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.stop()


async def fail() -> None:
    raise ValueError("broken")


def refuse() -> object:
    raise ValueError("refused before it began")


def test_results_and_errors_come_back(loop: LoopThread) -> None:
    async def answer() -> int:
        return 42

    assert loop.run(answer) == 42
    with pytest.raises(ValueError, match="broken"):
        loop.run(fail)
    with pytest.raises(ValueError, match="refused"):
        loop.run(refuse)  # type: ignore[arg-type]


def test_context_goes_along(loop: LoopThread) -> None:
    trace = contextvars.ContextVar("trace", default="none")
    trace.set("mine")

    async def seen() -> str:
        return trace.get()

    assert loop.run(seen) == "mine"


def test_an_interrupt_cancels_what_runs(loop: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def interrupted(*_: object) -> None:
        assert begun.wait(SOON_S)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run(wait)
    assert cancelled.wait(SOON_S)


def test_a_closed_loop_refuses_without_beginning() -> None:
    thread = LoopThread()
    thread.stop()
    with pytest.raises(RuntimeError, match="closed"):
        thread.run(fail)
