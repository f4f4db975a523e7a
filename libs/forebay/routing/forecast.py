"""What a request would take, served in one way or another. Pure: only what a forecast is; `outlook` makes them."""

from dataclasses import dataclass
from typing import Final, NamedTuple

from forebay.routing.correction import UNCORRECTED, Corrections
from forebay.routing.cost import DEFAULT_LINK, LinkRates
from forebay.routing.fleet import Worker
from forebay.routing.option import Held, Mode, PlanRequest


@dataclass(frozen=True, slots=True)
class Conditions:
    """What is known beside the workers. link: between any two nodes. now_s: by the clock of `WorkerLoad.seen_s`."""

    corrections: Corrections = UNCORRECTED
    link: LinkRates = DEFAULT_LINK
    now_s: float = 0.0


NOTHING_LEARNED: Final = Conditions()


class Prediction(NamedTuple):
    """What a plan is expected to take. Seconds from planning on; energy and money of the whole request.

    batch: sequences of a step of the decode worker. prefill_factor, decode_factor: corrections that are in it.
    """

    queue_s: float
    prefill_s: float
    transfer_s: float
    time_to_first_token_s: float
    time_per_output_token_s: float
    joules: float
    usd: float
    batch: int
    prefill_factor: float
    decode_factor: float


class Forecast(NamedTuple):
    """One way to serve a request. computes: the worker that computes the prompt. held: of it, where it is decoded.

    lateness: share by which REALTIME misses its target, the worse of both, or another tier its deadline; 0: it is met,
    or there is none. margins: what times of REALTIME are multiplied by before they are compared with it, since
    predictions are wrong: of the first token, and of others.
    """

    computes: Worker
    decodes: Worker
    held: Held
    lateness: float
    margins: tuple[float, float]
    prediction: Prediction

    @property
    def is_split(self) -> bool:
        """Whether a prefill worker computes the prompt."""
        return self.computes is not self.decodes


def mode_of(request: PlanRequest, forecast: Forecast) -> Mode:
    """What the forecast is called."""
    if forecast.is_split:
        return Mode.SPLIT
    is_resume = forecast.held.is_all and request.forced_mode is None
    return Mode.RESUME if is_resume else Mode.LOCAL
