"""A forecast's reason, as an engineer would say it. Pure."""

from forebay.routing.forecast import Forecast, Prediction, mode_of
from forebay.routing.option import Mode, PlanRequest, QosTier


def reason_for(request: PlanRequest, one: Forecast, other: Forecast | None, option_count: int) -> str:
    """Why `one` was taken rather than `other`, or was not. One line."""
    choice = "the only option" if other is None else f"{_against(request, one, other)}; {option_count} options"
    mode = mode_of(request, one).value
    return f"{mode}: {_cached(request, one)}; {_what(request, one)}; {_figures(one)}; {choice}."


def _cached(request: PlanRequest, one: Forecast) -> str:
    tokens = f"{request.prompt_tokens} {'prompt and generated' if request.is_begun else 'prompt'} tokens"
    return f"{one.held.tokens} of {tokens} are cached on {one.decodes.node_id}"


def _what(request: PlanRequest, one: Forecast) -> str:
    figures, decode = one.prediction, one.decodes
    waits = f" behind {_time(figures.queue_s)} of others" if figures.queue_s > 0 else ""
    rest = f"the rest in {_time(figures.prefill_s)}{waits}"
    if not one.is_split:
        return f"decode worker {decode.worker_id} computes {rest}{_why_alone(request)}"
    asked = ", as was asked for" if request.forced_mode is Mode.SPLIT else ""
    where = ""
    if one.computes.node_id != decode.node_id:
        where = f" on {one.computes.node_id}, and its KV is brought in {_time(figures.transfer_s)} more"
    return f"prefill worker {one.computes.worker_id} computes {rest}{where}{asked}"


def _why_alone(request: PlanRequest) -> str:
    if request.is_begun:
        return ", going on where another worker stopped"
    return ", as was asked for" if request.forced_mode is Mode.LOCAL else ""


def _figures(one: Forecast) -> str:
    figures = one.prediction
    return (
        f"{one.decodes.worker_id} takes {_time(figures.time_per_output_token_s)} a token"
        f" with {figures.batch} {'sequences' if figures.batch > 1 else 'sequence'}; first token after"
        f" {_time(figures.time_to_first_token_s)}, {figures.joules:.3g} J, {figures.usd:.3g} USD"
    )


def _against(request: PlanRequest, one: Forecast, other: Forecast) -> str:
    """What decided between the two."""
    where = f"with {other.computes.worker_id} " if other.is_split else ""
    name = f"{mode_of(request, other).value} {where}on {other.decodes.worker_id}"
    target = _target(request, one)
    if one.lateness > 0 and other.lateness > 0:
        return f"misses {target} by {one.lateness:.0%}, {name} by {other.lateness:.0%}"
    if other.lateness > 0:
        return f"meets {target}, {name} would miss it by {other.lateness:.0%}"
    if one.lateness > 0:
        return f"would miss {target} by {one.lateness:.0%}, {name} meets it"
    meets = f"meets {target} as does" if request.qos_tier is QosTier.REALTIME else "against"
    figures = other.prediction
    return f"{meets} {name} at {_price(figures)} and {_time(figures.time_to_first_token_s)} to the first token"


def _target(request: PlanRequest, one: Forecast) -> str:
    if request.qos_tier is QosTier.REALTIME:
        first_s, token_s = request.target.time_to_first_token_s, request.target.time_per_output_token_s
        wanted = f"{_time(first_s)} to the first token and {_time(token_s)} a token"
        first, token = one.margins
        return wanted if first == token == 1.0 else f"{wanted} at {first:.2g} and {token:.2g} times the prediction"
    return f"its deadline in {_time(request.deadline_s)}"


def _price(one: Prediction) -> str:
    return f"{one.usd:.3g} USD" if one.usd > 0 else f"{one.joules:.3g} J"


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1.0 else f"{seconds * 1e3:.3g} ms"
