"""RouterService on the wire: messages in, one call, messages out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from forebay.errors import DeadlineExceededError, NotServedYetError
from forebay.fleet.load import LoadView
from forebay.fleet.messages import load_to_proto, member_to_proto
from forebay.fleet.view import FleetView
from forebay.router.generation import Generations
from forebay.rpc.deadline import limited_to, shorter
from forebay.v1 import router_pb2, router_pb2_grpc


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Errors are raised as `forebay.errors`; the server's interceptor makes them a status.

    `max_request_s`: when a request is ended that has no deadline of its own, or a later one.
    """

    def __init__(self, generations: Generations, fleet: FleetView, loads: LoadView, max_request_s: float) -> None:
        self._generations = generations
        self._fleet = fleet
        self._loads = loads
        self._max_request_s = max_request_s

    async def Generate(  # gRPC's names
        self, request: router_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[router_pb2.GenerateResponse]:
        # The interceptor runs this generator to its end in one task and context: both limits hold across its yields.
        try:
            with limited_to(shorter(None, self._max_request_s)):
                async with (
                    asyncio.timeout(self._max_request_s),
                    aclosing(self._generations.generate(request)) as responses,
                ):
                    async for response in responses:
                        yield response
        except TimeoutError:
            message = f"a request may take {self._max_request_s:g} s here"
            raise DeadlineExceededError(message) from None

    async def Cancel(self, request: router_pb2.CancelRequest, context: Any) -> router_pb2.CancelResponse:
        self._generations.running.cancel(request.request_id)
        return router_pb2.CancelResponse()

    async def GetFleet(self, request: router_pb2.GetFleetRequest, context: Any) -> router_pb2.GetFleetResponse:
        members = sorted(self._fleet.members.values(), key=lambda member: (member.role.value, member.worker_id))
        entries = []
        for member in members:
            load = self._loads.loads.get(member.worker_id)
            entries.append(
                router_pb2.FleetEntry(
                    member=member_to_proto(member),
                    load=None if load is None else load_to_proto(member.worker_id, load),
                )
            )
        return router_pb2.GetFleetResponse(entries=entries, is_current=self._fleet.is_current)

    async def ExplainRequest(
        self, request: router_pb2.ExplainRequestRequest, context: Any
    ) -> router_pb2.ExplainRequestResponse:
        raise NotServedYetError("explaining a plan is not served yet")

    async def DrainWorker(self, request: router_pb2.DrainWorkerRequest, context: Any) -> router_pb2.DrainWorkerResponse:
        raise NotServedYetError("draining a worker is not served yet")
