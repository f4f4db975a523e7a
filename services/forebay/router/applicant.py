"""A request as admission sees it: how much work it is, when it has to begin, and when that has become useless."""

import math
import time
from typing import Final

from forebay.router.prompt import Prompt
from forebay.routing.admission import Applicant
from forebay.routing.forecast import Prediction
from forebay.routing.option import QosTier
from forebay.rpc.deadline import remaining_s

UNHURRIED_S: Final = 600.0
"""A BATCH request without a deadline wants to begin within so many seconds: behind those that have less time."""


def applicant_of(prompt: Prompt, least: Prediction | None) -> Applicant:
    """The applicant, at this moment. least: what the request would take on idle workers; None: not known."""
    request, now_s = prompt.request, time.monotonic()
    left_s = remaining_s()
    deadline_s = math.inf if left_s is None else now_s + left_s
    first_s = 0.0 if least is None else least.time_to_first_token_s
    in_time_s = request.target.time_to_first_token_s if request.tier is QosTier.REALTIME else UNHURRIED_S
    return Applicant(
        request_id=request.request_id,
        qos_tier=request.tier,
        tenant=request.tenant,
        work_tokens=len(prompt.token_ids) + request.expected_output_tokens,
        start_by_s=min(now_s + in_time_s, deadline_s) - first_s,
        give_up_s=deadline_s - first_s,
    )
