"""What every service's server and channel do around a call, on a real aio server on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from forebay.errors import (
    BY_REASON,
    Code,
    DeadlineExceededError,
    ForebayError,
    KvExhaustedError,
    RemoteError,
    StartError,
    UnknownModelError,
    WorkerLostError,
)
from forebay.rpc.addressee import addressed_to
from forebay.rpc.channel import open_channel
from forebay.rpc.deadline import limited_to, remaining_s
from forebay.rpc.server import Server
from forebay.rpc.status import from_failure, from_rpc_error, to_failure, translated
from forebay.telemetry import tracer
from forebay.telemetry.tracing import use_provider
from forebay.v1 import errors_pb2, tokenizer_pb2, tokenizer_pb2_grpc

SERVICE = "forebay.v1.TokenizerService"


class FakeTokenizer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Does what the input text says."""

    def __init__(self) -> None:
        self.seen_remaining_s: float | None = None
        self.started = asyncio.Event()
        self.cleaned_up = asyncio.Event()

    async def Encode(self, request, context):  # type: ignore[no-untyped-def]
        self.seen_remaining_s = remaining_s()
        match request.input.text:
            case "model":
                raise UnknownModelError("no such model", field="model", served="x")
            case "full":
                raise KvExhaustedError("full", retry_after_s=1.5)
            case "defect":
                raise ValueError("secret prompt text")
            case "hang":
                await self._hang()
        return tokenizer_pb2.EncodeResponse(token_ids=[1])

    async def Detokenize(self, request_iterator, context):  # type: ignore[no-untyped-def]
        try:
            async for _ in request_iterator:
                for _ in range(10_000):  # more than is sent to a caller who does not read
                    yield tokenizer_pb2.DetokenizeResponse(items=[tokenizer_pb2.DetokenizedText(text="x" * 100)])
                    self.started.set()
        finally:
            self.cleaned_up.set()

    async def _hang(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cleaned_up.set()


@asynccontextmanager
async def serving(
    servicer: FakeTokenizer, max_call_s: float | None = None, serves_as: str | None = None
) -> AsyncIterator[tuple[Server, str, grpc.aio.Channel]]:
    server = Server("127.0.0.1:0", max_call_s=max_call_s, serves_as=serves_as)
    server.add(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, servicer, SERVICE)
    address = await server.start()
    async with open_channel(address) as channel:
        yield server, address, channel
    await server.stop(0)


def encode(channel: grpc.aio.Channel, text: str, timeout_s: float | None = None):  # type: ignore[no-untyped-def]
    request = tokenizer_pb2.EncodeRequest(input=tokenizer_pb2.EncodeInput(text=text))
    return tokenizer_pb2_grpc.TokenizerServiceStub(channel).Encode(request, timeout=timeout_s)


async def test_an_error_of_ours_arrives_with_code_reason_and_field() -> None:
    async with serving(FakeTokenizer()) as (_, _, channel):
        with pytest.raises(UnknownModelError) as caught, translated():
            await encode(channel, "model")
    assert caught.value.code == Code.NOT_FOUND
    assert caught.value.metadata == {"field": "model", "served": "x"}
    assert caught.value.message == "no such model"


async def test_retry_after_travels() -> None:
    async with serving(FakeTokenizer()) as (_, _, channel):
        with pytest.raises(KvExhaustedError) as caught, translated():
            await encode(channel, "full")
    assert caught.value.retry_after_s == 1.5


async def test_a_defect_is_internal_and_tells_nothing() -> None:
    async with serving(FakeTokenizer()) as (_, _, channel):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await encode(channel, "defect")
        assert (await encode(channel, "ok")).token_ids == [1]
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    error = from_rpc_error(caught.value)
    assert (error.reason, error.metadata) == ("INTERNAL", {"service": SERVICE})


async def test_a_call_may_last_no_longer_than_its_server_allows() -> None:
    servicer = FakeTokenizer()
    async with serving(servicer, max_call_s=0.3) as (_, _, channel):
        with pytest.raises(DeadlineExceededError, match="a call may take"), translated():
            await encode(channel, "hang")
        assert servicer.cleaned_up.is_set()
        await encode(channel, "ok", timeout_s=100)
        assert servicer.seen_remaining_s is not None
        assert 0 < servicer.seen_remaining_s <= 0.3


async def test_a_caller_who_does_not_read_holds_no_call_up() -> None:
    servicer = FakeTokenizer()
    async with serving(servicer, max_call_s=0.3) as (_, _, channel):
        call = tokenizer_pb2_grpc.TokenizerServiceStub(channel).Detokenize()
        await call.write(tokenizer_pb2.DetokenizeRequest())
        await servicer.cleaned_up.wait()
        with pytest.raises(DeadlineExceededError, match="a call may take"), translated():
            await _read_all(call)


async def _read_all(call) -> None:  # type: ignore[no-untyped-def]
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_call_inherits_what_is_left_of_the_deadline() -> None:
    servicer = FakeTokenizer()
    async with serving(servicer) as (_, _, channel):
        with limited_to(3.0):
            await encode(channel, "ok", timeout_s=100)
        assert servicer.seen_remaining_s is not None
        assert 0 < servicer.seen_remaining_s <= 3.5  # the wire rounds up
        await encode(channel, "ok")
        assert servicer.seen_remaining_s <= 11.0, "a call without a deadline gets the default"


async def test_deadline_and_cancel_reach_the_handler() -> None:
    servicer = FakeTokenizer()
    async with serving(servicer) as (_, _, channel):
        with pytest.raises(BY_REASON["DEADLINE_EXCEEDED"]), translated():
            await encode(channel, "hang", timeout_s=0.2)
        await asyncio.wait_for(servicer.cleaned_up.wait(), 2)

        servicer.started.clear()
        servicer.cleaned_up.clear()
        call = encode(channel, "hang")
        task = asyncio.ensure_future(call)
        await asyncio.wait_for(servicer.started.wait(), 2)
        task.cancel()
        await asyncio.wait_for(servicer.cleaned_up.wait(), 2)


async def test_a_cancelled_stream_runs_the_generators_finally() -> None:
    servicer = FakeTokenizer()
    async with serving(servicer) as (_, _, channel):
        stream = tokenizer_pb2_grpc.TokenizerServiceStub(channel).Detokenize()
        await stream.write(tokenizer_pb2.DetokenizeRequest())
        await asyncio.wait_for(servicer.started.wait(), 2)
        stream.cancel()
        await asyncio.wait_for(servicer.cleaned_up.wait(), 2)


async def test_a_lost_server_is_a_remote_error() -> None:
    async with serving(FakeTokenizer()) as (server, _, channel):
        await encode(channel, "ok")
        await server.stop(0)
        with pytest.raises(RemoteError) as caught, translated():
            await encode(channel, "ok")
    assert caught.value.code == Code.UNAVAILABLE


@pytest.mark.parametrize("serves_as", ["successor", None])
async def test_a_call_for_a_process_that_was_here_before_is_refused(serves_as: str | None) -> None:
    async with serving(servicer := FakeTokenizer(), serves_as=serves_as) as (_, _, channel):
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        request = tokenizer_pb2.EncodeRequest(input=tokenizer_pb2.EncodeInput(text="ok"))
        assert (await stub.Encode(request, metadata=addressed_to("successor"))).token_ids == [1]
        meant_for_another = stub.Encode(request, metadata=addressed_to("killed"))
        if serves_as is None:  # who has no name takes everything
            assert (await meant_for_another).token_ids == [1]
            return
        with pytest.raises(WorkerLostError) as caught, translated():
            await meant_for_another
        assert caught.value.metadata["worker_id"] == "killed"
        stream = stub.Detokenize(metadata=addressed_to("killed"))
        with pytest.raises(WorkerLostError), translated():
            await stream.read()
        assert not servicer.started.is_set()


async def test_a_taken_port_is_one_clear_line() -> None:
    async with serving(FakeTokenizer()) as (_, address, _):
        with pytest.raises(StartError) as caught:
            await Server(address).start()
    assert address in caught.value.message
    assert "--listen" in caught.value.message


async def test_health_follows_serving() -> None:
    async with serving(FakeTokenizer()) as (server, _, channel):
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(service: str) -> int:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

        assert await status(SERVICE) == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.set_serving(True)
        assert await status(SERVICE) == health_pb2.HealthCheckResponse.SERVING
        assert await status("") == health_pb2.HealthCheckResponse.SERVING


async def test_health_can_be_watched() -> None:
    async with serving(FakeTokenizer()) as (server, _, channel):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        changes = watch.__aiter__()
        assert (await anext(changes)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.set_serving(True)
        assert (await anext(changes)).status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("kind", BY_REASON.values(), ids=BY_REASON.keys())
def test_every_error_survives_as_a_value(kind: type[ForebayError]) -> None:
    error = from_failure(to_failure(kind("why", field="a.b", retry_after_s=0.25)))
    assert type(error) is kind
    assert (error.message, error.field, error.retry_after_s) == ("why", "a.b", 0.25)


def test_reasons_are_those_of_the_proto() -> None:
    values = errors_pb2.ErrorReason.DESCRIPTOR.values_by_name
    names = {name.removeprefix("ERROR_REASON_") for name in values} - {"UNSPECIFIED"}
    assert set(BY_REASON) | {"INTERNAL"} == names


async def test_an_unreachable_address_is_unavailable() -> None:
    async with open_channel("127.0.0.1:1") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await encode(channel, "ok", timeout_s=5)
    assert from_rpc_error(caught.value).code == Code.UNAVAILABLE


def test_a_status_that_a_write_has_hidden_is_no_defect() -> None:
    lost = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(), "Internal error from Core"
    )
    assert from_rpc_error(lost).code == Code.UNAVAILABLE, "to be asked again"


@pytest.mark.parametrize(("begins_traces", "names"), [(True, ["encode", "encode"]), (False, ["encode"])])
async def test_only_the_front_door_begins_traces(begins_traces: bool, names: list[str]) -> None:
    recorded = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(recorded))
    use_provider(provider)
    try:
        server = Server("127.0.0.1:0", {f"/{SERVICE}/Encode": "encode"}, begins_traces=begins_traces)
        server.add(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, FakeTokenizer(), SERVICE)
        async with open_channel(await server.start()) as channel:
            await encode(channel, "ok")
            with tracer().start_as_current_span("caller"):
                await encode(channel, "ok")
        await server.stop(0)
    finally:
        use_provider(None)
    spans = recorded.get_finished_spans()
    assert [one.name for one in spans if one.name != "caller"] == names
    caller = next(one for one in spans if one.name == "caller")
    served = [one for one in spans if one.name == "encode"][-1]
    assert served.parent is not None
    assert served.parent.span_id == caller.context.span_id
