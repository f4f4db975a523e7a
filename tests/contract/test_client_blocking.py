"""The plain client: the same answers as the async one, from threads without an event loop."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from forebay.client import Client
from forebay.errors import DeadlineExceededError, QueueFullError
from forebay.testing.fake_router import FakeRouter, Step, chunk, finished, serving, started

ANSWER: list[Step] = [started(), chunk("Par", 1), chunk("is", 2), finished()]


@pytest.fixture
def router() -> FakeRouter:
    return FakeRouter(ANSWER)


@pytest.fixture
async def address(router: FakeRouter) -> AsyncIterator[str]:
    async with serving(router) as address:
        yield address


async def test_generate_chat_stream_and_fleet(address: str) -> None:
    def work() -> None:
        with Client(address) as client:
            assert client.target == address
            assert client.generate("x").text == "Paris"
            assert client.chat([{"role": "user", "content": "x"}]).token_ids == (1, 2)
            stream = client.stream([1, 2])
            assert [piece.text for piece in stream] == ["Par", "is"]
            assert stream.completion.request_id == stream.request_id == "r-1"
            assert stream.trace_id == "ab" * 16
            assert stream.plan == stream.completion.plan
            client.cancel("r-1")
            assert client.fleet().is_current

    await asyncio.to_thread(work)


async def test_breaking_out_of_the_loop_cancels_the_request(router: FakeRouter, address: str) -> None:
    router.steps = [started(), chunk("a", 1), asyncio.Event()]
    client = Client(address)

    def work() -> object:
        stream = client.stream("x")
        for _ in stream:
            break
        return stream  # still held: it is the loop's end that cancels, not the garbage collector

    stream = await asyncio.to_thread(work)
    await asyncio.wait_for(router.ended.wait(), 10)
    assert router.was_cancelled
    assert stream is not None
    await asyncio.to_thread(client.close)


async def test_leaving_the_context_cancels_the_request(router: FakeRouter, address: str) -> None:
    router.steps = [started(), chunk("a", 1), asyncio.Event()]

    def work() -> None:
        with Client(address) as client, client.stream("x") as stream:
            next(stream)

    await asyncio.to_thread(work)
    await asyncio.wait_for(router.ended.wait(), 10)
    assert router.was_cancelled


async def test_errors_and_deadlines_are_typed(router: FakeRouter, address: str) -> None:
    router.steps = [QueueFullError("full", retry_after_s=2.0)]

    def work() -> None:
        with Client(address) as client:
            with pytest.raises(QueueFullError) as caught:
                client.generate("x")
            assert caught.value.retry_after_s == 2.0
            router.steps = [started(), asyncio.Event()]
            with pytest.raises(DeadlineExceededError):
                list(client.stream("x", timeout_s=0.2))

    await asyncio.to_thread(work)


async def test_the_callers_trace_goes_along(router: FakeRouter, address: str) -> None:
    span = NonRecordingSpan(SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=TraceFlags(1)))

    def work() -> None:
        with Client(address) as client, trace.use_span(span):
            client.generate("x")

    await asyncio.to_thread(work)
    assert router.metadata["traceparent"] == f"00-{0xA1:032x}-{0xB2:016x}-01"


async def test_many_threads_share_one_client(router: FakeRouter, address: str) -> None:
    def work() -> list[str]:
        with Client(address) as client:
            texts: list[str] = []
            threads = [threading.Thread(target=lambda: texts.append(client.generate("x").text)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return texts

    assert await asyncio.to_thread(work) == ["Paris"] * 8


async def test_a_closed_client_says_so_and_leaves_no_thread(address: str) -> None:
    def work() -> None:
        client = Client(address)
        stream = client.stream("x")
        client.close()
        client.close()
        stream.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.generate("x")

    await asyncio.to_thread(work)
    assert not [thread for thread in threading.enumerate() if thread.name == "forebay-client"]


def test_the_sdk_needs_no_heavy_package() -> None:
    blocked = ["torch", "pydantic", "nats", "opentelemetry.sdk", "psutil", "rich", "numpy", "grpc_health"]
    program = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import forebay.client\n"
        "forebay.client.Client().close()\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
