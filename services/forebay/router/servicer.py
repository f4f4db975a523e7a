"""RouterService on the wire: messages in, one call, messages out."""

from collections.abc import AsyncIterator
from typing import Any

from forebay.errors import InvalidFieldError
from forebay.fleet.load import LoadView
from forebay.fleet.messages import load_to_proto, member_to_proto
from forebay.fleet.view import FleetView
from forebay.router.advising import Advising
from forebay.router.draining import Draining
from forebay.router.generation import Generations
from forebay.routing.option import Target
from forebay.v1 import router_pb2, router_pb2_grpc
from forebay.wire.advice import advice_to_proto, demand_from_proto
from forebay.wire.plan import plan_to_proto


class RouterServicer(router_pb2_grpc.RouterServiceServicer):
    """Errors are raised as `forebay.errors`; the server's interceptor makes them a status."""

    def __init__(
        self, generations: Generations, fleet: FleetView, loads: LoadView, draining: Draining, advising: Advising
    ) -> None:
        self._generations = generations
        self._draining = draining
        self._advising = advising
        self._fleet = fleet
        self._loads = loads

    def Generate(  # gRPC's names
        self, request: router_pb2.GenerateRequest, context: Any
    ) -> AsyncIterator[router_pb2.GenerateResponse]:
        return self._generations.generate(request)

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
        chosen = self._generations.explain(request.request_id)
        return router_pb2.ExplainRequestResponse(
            chosen=plan_to_proto(chosen),
            rejected=None if chosen.rejected is None else plan_to_proto(chosen.rejected),
        )

    async def AdviseRoles(self, request: router_pb2.AdviseRolesRequest, context: Any) -> router_pb2.AdviseRolesResponse:
        own = self._generations.demand()
        demand = demand_from_proto(request.demand) if request.HasField("demand") else own
        return advice_to_proto(self._advising.advise(demand, _target(request)), own)

    async def DrainWorker(self, request: router_pb2.DrainWorkerRequest, context: Any) -> router_pb2.DrainWorkerResponse:
        running = await self._draining.drain(request.worker_id, is_forced=request.force)
        return router_pb2.DrainWorkerResponse(running_sequences=running)


def _target(request: router_pb2.AdviseRolesRequest) -> Target:
    default = Target()
    first_s = request.time_to_first_token_s or default.time_to_first_token_s
    token_s = request.time_per_output_token_s or default.time_per_output_token_s
    for name, seconds in (("time_to_first_token_s", first_s), ("time_per_output_token_s", token_s)):
        if not 0.0 < seconds < float("inf"):
            raise InvalidFieldError(f"{name} must be positive and finite, not {seconds}", field=name)
    return Target(first_s, token_s)
