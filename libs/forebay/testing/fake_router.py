"""A hand-written router for the client's tests: it plays a script and remembers how each call ended."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from forebay.errors import ForebayError, NotServedYetError, UnknownRequestError
from forebay.rpc.server import Server
from forebay.v1 import common_pb2, events_pb2, router_pb2, router_pb2_grpc

Step = router_pb2.GenerateResponse | ForebayError | asyncio.Event
"""Send this; fail with this; wait for this."""


def started(request_id: str = "r-1") -> router_pb2.GenerateResponse:
    plan = common_pb2.Plan(
        mode=common_pb2.EXECUTION_MODE_SPLIT,
        prefill_worker_id="p-1",
        decode_worker_id="d-1",
        matched_tokens=32,
        reason="a prefill worker is idle",
    )
    return router_pb2.GenerateResponse(
        started=router_pb2.Started(request_id=request_id, trace_id="ab" * 16, plan=plan, prompt_tokens=40, seed=17)
    )


def chunk(text: str, *token_ids: int, logprob: float | None = None) -> router_pb2.GenerateResponse:
    logprobs = [
        common_pb2.TokenLogprobs(
            chosen=common_pb2.TokenProbability(token_id=token_id, logprob=logprob),
            alternatives=[common_pb2.TokenProbability(token_id=7, logprob=-2.0)],
        )
        for token_id in token_ids
        if logprob is not None
    ]
    return router_pb2.GenerateResponse(chunk=router_pb2.Chunk(text=text, token_ids=token_ids, logprobs=logprobs))


def finished(
    reason: "common_pb2.FinishReason.ValueType" = common_pb2.FINISH_REASON_STOP, stop_match: str | None = None
) -> router_pb2.GenerateResponse:
    return router_pb2.GenerateResponse(
        finished=router_pb2.Finished(
            finish_reason=reason,
            stop_match=stop_match,
            usage=common_pb2.Usage(prompt_tokens=40, completion_tokens=3, cached_tokens=32),
            timings=common_pb2.Timings(queue_s=0.5, time_to_first_token_s=1.5, total_s=2.5),
        )
    )


@dataclass
class FakeRouter(router_pb2_grpc.RouterServiceServicer):
    """Plays `steps` at each Generate; `ended` is set when a call is over, however it ended."""

    steps: Iterable[Step] = ()
    requests: list[router_pb2.GenerateRequest] = field(default_factory=list)
    metadata: dict[str, str | bytes] = field(default_factory=dict)
    time_remaining_s: float | None = None
    sent_count: int = 0
    was_cancelled: bool = False
    began: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def Generate(  # noqa: N802
        self, request: router_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[router_pb2.GenerateResponse]:
        self.requests.append(request)
        self.metadata = dict(context.invocation_metadata())
        self.time_remaining_s = context.time_remaining()
        self.began.set()
        try:
            for step in self.steps:
                if isinstance(step, ForebayError):
                    raise step
                if isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    yield step
                    self.sent_count += 1
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        finally:
            self.ended.set()

    async def Cancel(  # noqa: N802
        self, request: router_pb2.CancelRequest, context: Any
    ) -> router_pb2.CancelResponse:
        if request.request_id != "r-1":
            raise UnknownRequestError("no such request is running", field="request_id")
        return router_pb2.CancelResponse()

    async def GetFleet(  # noqa: N802
        self, request: router_pb2.GetFleetRequest, context: Any
    ) -> router_pb2.GetFleetResponse:
        decode = events_pb2.FleetMember(worker_id="d-1", role=common_pb2.SERVICE_ROLE_DECODE, address="127.0.0.1:1")
        router = events_pb2.FleetMember(worker_id="r-1", role=common_pb2.SERVICE_ROLE_ROUTER)
        load = events_pb2.WorkerLoad(worker_id="d-1", running_sequences=2, context_tokens=9)
        return router_pb2.GetFleetResponse(
            entries=[
                router_pb2.FleetEntry(member=decode, load=load),
                router_pb2.FleetEntry(member=router),
            ],
            is_current=True,
        )

    async def ExplainRequest(  # noqa: N802
        self, request: router_pb2.ExplainRequestRequest, context: Any
    ) -> router_pb2.ExplainRequestResponse:
        if request.request_id != "r-1":
            raise UnknownRequestError("no such request was planned", field="request_id")
        chosen = started().started.plan
        chosen.prediction.CopyFrom(common_pb2.Prediction(time_to_first_token_s=0.25, prefill_s=0.2, cost_usd=0.5))
        return router_pb2.ExplainRequestResponse(chosen=chosen, rejected=started().started.plan)

    async def DrainWorker(self, request: Any, context: Any) -> router_pb2.DrainWorkerResponse:  # noqa: N802
        raise NotServedYetError("not part of the script")


@asynccontextmanager
async def serving(router: FakeRouter, listen: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The router on a real server; gives its address."""
    server = Server(listen)
    server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, router, "forebay.v1.RouterService")
    address = await server.start()
    await server.set_serving(True)
    try:
        yield address
    finally:
        await server.stop(0)


async def status_server(code: grpc.StatusCode) -> tuple[grpc.aio.Server, str]:
    """A server whose Generate sends a first event and then ends with a bare status, without any reason of ours."""

    async def generate(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield started().SerializeToString()
        await context.abort(code, "gone")

    handler: Any = grpc.unary_stream_rpc_method_handler(generate)
    server = grpc.aio.server()
    generic: Callable[..., Any] = grpc.method_handlers_generic_handler
    server.add_generic_rpc_handlers([generic("forebay.v1.RouterService", {"Generate": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"
