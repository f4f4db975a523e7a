"""The async client against a hand-written router on a real server: events, errors, cancels, deadlines, flow control."""

import asyncio
import gc

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from forebay.client import (
    AsyncClient,
    BrokenAnswerError,
    ConnectionLostError,
    ExecutionMode,
    FinishReason,
    RequestCancelledError,
    TokenProbability,
    UnreachableError,
)
from forebay.errors import (
    Code,
    DeadlineExceededError,
    ForebayError,
    InvalidFieldError,
    QueueFullError,
    RemoteError,
    UnknownRequestError,
)
from forebay.testing.fake_router import FakeRouter, Step, chunk, finished, serving, started, status_server
from forebay.v1 import common_pb2

ANSWER: list[Step] = [started(), chunk("Par", 1), chunk("", 2), chunk("is", 3), finished()]


async def test_generate_returns_everything_the_router_said() -> None:
    steps = [
        started(),
        chunk("Pa", 1, logprob=-0.5),
        chunk("ris", 2, 3, logprob=-0.25),
        finished(common_pb2.FINISH_REASON_STOP, stop_match="."),
    ]
    async with serving(FakeRouter(steps)) as address, AsyncClient(address) as client:
        completion = await client.generate("Capital?", logprobs=1)
    assert completion.text == "Paris"
    assert completion.token_ids == (1, 2, 3)
    assert [entry.chosen.logprob for entry in completion.logprobs] == [-0.5, -0.25, -0.25]
    assert completion.logprobs[0].alternatives == (TokenProbability(7, -2.0),)
    assert (completion.finish_reason, completion.stop_match) == (FinishReason.STOP, ".")
    assert (completion.usage.prompt_tokens, completion.usage.cached_tokens, completion.usage.total_tokens) == (
        40,
        32,
        43,
    )
    assert (completion.timings.queue_s, completion.timings.total_s) == (0.5, 2.5)
    assert (completion.plan.mode, completion.plan.prefill_worker_id) == (ExecutionMode.SPLIT, "p-1")
    assert (completion.request_id, completion.trace_id) == ("r-1", "ab" * 16)


async def test_length_is_a_finish_reason_and_no_stop_match_is_none() -> None:
    router = FakeRouter([started(), finished(common_pb2.FINISH_REASON_LENGTH)])
    async with serving(router) as address, AsyncClient(address) as client:
        completion = await client.generate([5, 6])
    assert completion.finish_reason is FinishReason.LENGTH
    assert completion.stop_match is None
    assert list(router.requests[0].tokens.token_ids) == [5, 6]


async def test_chat_sends_messages_in_order() -> None:
    router = FakeRouter(ANSWER)
    async with serving(router) as address, AsyncClient(address) as client:
        await client.chat([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], max_tokens=5)
    sent = router.requests[0]
    assert [(message.role, message.content) for message in sent.chat.messages] == [("system", "s"), ("user", "u")]
    assert sent.sampling.max_tokens == 5


async def test_a_stream_gives_chunks_then_the_completion() -> None:
    async with serving(FakeRouter(ANSWER)) as address, AsyncClient(address) as client:
        stream = client.stream("x")
        assert (stream.request_id, stream.trace_id, stream.plan) == (None, None, None)
        with pytest.raises(RuntimeError, match="no completion yet"):
            _ = stream.completion
        texts = [piece.text async for piece in stream]
        assert texts == ["Par", "", "is"]
        assert stream.completion.text == "Paris"
        assert (stream.request_id, stream.trace_id) == ("r-1", "ab" * 16)
        assert await anext(stream, None) is None


async def test_single_chunks_can_be_looked_at_without_ending_the_request() -> None:
    router = FakeRouter(ANSWER)
    async with serving(router) as address, AsyncClient(address) as client, client.stream("x") as stream:
        first = await anext(stream)
        rest = [piece.text async for piece in stream]
    assert [first.text, *rest] == ["Par", "", "is"]
    assert not router.was_cancelled


async def test_breaking_out_of_the_loop_cancels_the_request() -> None:
    router = FakeRouter([started(), chunk("a", 1), asyncio.Event()])
    async with serving(router) as address, AsyncClient(address) as client:
        stream = client.stream("x")
        async for _ in stream:
            break
        await asyncio.wait_for(router.ended.wait(), 10)
    assert router.was_cancelled


async def test_a_stream_that_is_dropped_is_cancelled() -> None:
    router = FakeRouter([started(), chunk("a", 1), asyncio.Event()])
    async with serving(router) as address, AsyncClient(address) as client:
        stream = client.stream("x")
        await anext(stream)
        del stream
        gc.collect()
        await asyncio.wait_for(router.ended.wait(), 10)
    assert router.was_cancelled


async def test_leaving_the_context_cancels_the_request() -> None:
    router = FakeRouter([started(), chunk("a", 1), asyncio.Event()])
    async with serving(router) as address, AsyncClient(address) as client:
        async with client.stream("x") as stream:
            await anext(stream)
        await asyncio.wait_for(router.ended.wait(), 10)
    assert router.was_cancelled


async def test_cancelling_the_task_cancels_the_request_even_before_the_plan() -> None:
    router = FakeRouter([asyncio.Event()])
    async with serving(router) as address, AsyncClient(address) as client:
        task = asyncio.create_task(client.generate("x"))
        await router.began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(router.ended.wait(), 10)
    assert router.was_cancelled


async def test_closing_the_client_ends_its_streams_as_cancelled() -> None:
    router = FakeRouter([started(), chunk("a", 1), asyncio.Event()])
    async with serving(router) as address:
        client = AsyncClient(address)
        stream = client.stream("x")
        await anext(stream)
        reading = asyncio.create_task(stream.finish())
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(RequestCancelledError):
            await reading
        await asyncio.wait_for(router.ended.wait(), 10)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidFieldError("temperature must be >= 0", field="sampling.temperature"), Code.INVALID_ARGUMENT),
        (QueueFullError("too many wait", retry_after_s=1.5), Code.RESOURCE_EXHAUSTED),
        (RequestCancelledError("ended by Cancel"), Code.CANCELLED),
        (ForebayError("a defect", service="forebay.v1.RouterService"), Code.INTERNAL),
    ],
)
async def test_errors_of_the_router_arrive_as_their_own_class(error: ForebayError, code: Code) -> None:
    async with serving(FakeRouter([error])) as address, AsyncClient(address) as client:
        with pytest.raises(type(error)) as caught:
            await client.generate("x")
    assert (caught.value.code, caught.value.message) == (code, error.message)
    assert (caught.value.field, caught.value.retry_after_s) == (error.field, error.retry_after_s)


async def test_an_error_after_some_text_ends_the_iteration_with_it() -> None:
    router = FakeRouter([started(), chunk("a", 1), QueueFullError("preempted")])
    async with serving(router) as address, AsyncClient(address) as client:
        stream = client.stream("x")
        assert (await anext(stream)).text == "a"
        with pytest.raises(QueueFullError):
            await anext(stream)
        assert await anext(stream, None) is None


async def test_an_unreachable_router_is_named_with_what_to_do(free_address: str) -> None:
    async with AsyncClient(free_address) as client:
        for call in (client.generate("x"), client.fleet(), client.cancel("r")):
            with pytest.raises(UnreachableError) as caught:
                await call
            assert free_address in caught.value.message
            assert "./scripts/up" in caught.value.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [(grpc.StatusCode.UNAVAILABLE, ConnectionLostError), (grpc.StatusCode.CANCELLED, RemoteError)],
)
async def test_a_bare_status_in_the_middle_is_said_precisely(status: grpc.StatusCode, kind: type[ForebayError]) -> None:
    server, address = await status_server(status)
    try:
        async with AsyncClient(address) as client:
            with pytest.raises(kind):
                await client.generate("x")
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    "steps",
    [
        [chunk("a", 1)],
        [started(), started(), finished()],
        [started(), chunk("a", 1)],
        [started(), finished(common_pb2.FINISH_REASON_UNSPECIFIED)],
        [started(), finished(), chunk("a", 1)],
        [],
    ],
)
async def test_an_answer_that_breaks_the_protocol_is_an_error(steps: list[Step]) -> None:
    async with serving(FakeRouter(steps)) as address, AsyncClient(address) as client:
        with pytest.raises(BrokenAnswerError):
            await client.generate("x")


async def test_the_deadline_is_sent_and_enforced() -> None:
    router = FakeRouter([started(), asyncio.Event()])
    async with serving(router) as address, AsyncClient(address) as client:
        with pytest.raises(DeadlineExceededError):
            await client.generate("x", timeout_s=0.2)
        await asyncio.wait_for(router.ended.wait(), 10)
    assert router.time_remaining_s is not None
    assert router.time_remaining_s <= 1


async def test_the_default_deadline_is_the_clients() -> None:
    router = FakeRouter(ANSWER)
    async with serving(router) as address:
        async with AsyncClient(address) as client:
            await client.generate("x")
        assert 500 < (router.time_remaining_s or 0) <= 601
        async with AsyncClient(address, timeout_s=50) as client:
            await client.generate("x", timeout_s=None)
        assert 40 < (router.time_remaining_s or 0) <= 51


async def test_the_callers_trace_goes_along() -> None:
    router = FakeRouter(ANSWER)
    span = NonRecordingSpan(SpanContext(0xA1, 0xB2, is_remote=False, trace_flags=TraceFlags(1)))
    async with serving(router) as address, AsyncClient(address) as client:
        with trace.use_span(span):
            await client.generate("x")
        assert router.metadata["traceparent"] == f"00-{0xA1:032x}-{0xB2:016x}-01"
        await client.generate("x")
        assert "traceparent" not in router.metadata


async def test_a_slow_reader_holds_the_router_back() -> None:
    pieces: list[Step] = [chunk("x" * 100_000, index) for index in range(200)]
    router = FakeRouter([started(), *pieces, finished()])
    async with serving(router) as address, AsyncClient(address) as client:
        stream = client.stream("x")
        await anext(stream)
        before = -1
        while router.sent_count != before:  # until the router has stopped getting on
            before = router.sent_count
            await asyncio.sleep(0.2)
        assert router.sent_count < 150
        assert len([piece async for piece in stream]) == 199
    assert not router.was_cancelled


async def test_cancel_and_fleet() -> None:
    async with serving(FakeRouter()) as address, AsyncClient(address) as client:
        await client.cancel("r-1")
        with pytest.raises(UnknownRequestError) as caught:
            await client.cancel("other")
        fleet = await client.fleet()
    assert caught.value.field == "request_id"
    assert fleet.is_current
    assert [(member.role, member.worker_id) for member in fleet.members] == [("decode", "d-1"), ("router", "r-1")]
    loads = [member.load for member in fleet.members]
    assert loads[0] is not None
    assert (loads[0].running_sequences, loads[0].context_tokens) == (2, 9)
    assert loads[1] is None
