"""Demand and advice on roles on the wire."""

from forebay.routing.demand import Demand
from forebay.routing.role_advice import Recommendation, SplitForecast
from forebay.v1 import router_pb2
from forebay.wire.role import role_from_proto, role_to_proto


def demand_to_proto(demand: Demand) -> router_pb2.Demand:
    """The demand."""
    return router_pb2.Demand(**demand._asdict())


def demand_from_proto(message: router_pb2.Demand) -> Demand:
    """The demand."""
    return Demand(
        message.seconds,
        message.requests,
        message.prompt_tokens,
        message.answers,
        message.cached_tokens,
        message.output_tokens,
    )


def advice_to_proto(advice: Recommendation, own: Demand) -> router_pb2.AdviseRolesResponse:
    """The advice, and what this router was asked."""
    return router_pb2.AdviseRolesResponse(
        own_demand=demand_to_proto(own),
        demand=demand_to_proto(advice.demand),
        now=_split_to_proto(advice.now),
        best=_split_to_proto(advice.best),
        splits=[_split_to_proto(one) for one in advice.splits],
        switches=[router_pb2.RoleSwitch(worker_id=one, role=role_to_proto(role)) for one, role in advice.switches],
        reason=advice.reason,
    )


def advice_from_proto(message: router_pb2.AdviseRolesResponse) -> Recommendation:
    """The advice."""
    return Recommendation(
        demand=demand_from_proto(message.demand),
        now=_split_from_proto(message.now),
        best=_split_from_proto(message.best),
        splits=tuple(_split_from_proto(one) for one in message.splits),
        switches=tuple((one.worker_id, role_from_proto(one.role)) for one in message.switches),
        reason=message.reason,
    )


def _split_to_proto(one: SplitForecast) -> router_pb2.RoleSplit:
    return router_pb2.RoleSplit(
        prefill_worker_ids=one.prefill_ids,
        decode_worker_ids=one.decode_ids,
        prefill_busy=one.prefill_busy,
        decode_busy=one.decode_busy,
        time_to_first_token_s=one.time_to_first_token_s,
        time_per_output_token_s=one.time_per_output_token_s,
        pressure=one.pressure,
    )


def _split_from_proto(message: router_pb2.RoleSplit) -> SplitForecast:
    return SplitForecast(
        tuple(message.prefill_worker_ids),
        tuple(message.decode_worker_ids),
        message.prefill_busy,
        message.decode_busy,
        message.time_to_first_token_s,
        message.time_per_output_token_s,
        message.pressure,
    )
