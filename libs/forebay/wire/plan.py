"""Plans on the wire."""

from forebay.routing.forecast import Prediction
from forebay.routing.plan import Plan
from forebay.v1 import common_pb2
from forebay.wire.mode import mode_to_proto


def plan_to_proto(plan: Plan) -> common_pb2.Plan:
    """The plan, without the option that it was preferred to."""
    return common_pb2.Plan(
        mode=mode_to_proto(plan.mode),
        prefill_worker_id=plan.prefill_worker_id or "",
        decode_worker_id=plan.decode_worker_id,
        matched_tokens=plan.matched_tokens,
        reason=plan.reason,
        prediction=None if plan.prediction is None else _prediction_to_proto(plan.prediction),
    )


def _prediction_to_proto(prediction: Prediction) -> common_pb2.Prediction:
    return common_pb2.Prediction(
        time_to_first_token_s=prediction.time_to_first_token_s,
        time_per_output_token_s=prediction.time_per_output_token_s,
        energy_joules=prediction.joules,
        cost_usd=prediction.usd,
        queue_s=prediction.queue_s,
        prefill_s=prediction.prefill_s,
        transfer_s=prediction.transfer_s,
    )
