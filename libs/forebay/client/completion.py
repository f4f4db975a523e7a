"""What the caller gets back, as plain frozen values. Knows nothing of protos or of how the values travelled."""

from dataclasses import dataclass
from enum import StrEnum


class FinishReason(StrEnum):
    """Why generation ended."""

    STOP = "stop"
    LENGTH = "length"


class ExecutionMode(StrEnum):
    """Which workers computed the request."""

    LOCAL = "local"
    SPLIT = "split"
    RESUME = "resume"


@dataclass(frozen=True, slots=True)
class TokenProbability:
    """A token and its natural log-probability at temperature 1, before penalties."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: the chosen token and the likeliest others, most likely first."""

    chosen: TokenProbability
    alternatives: tuple[TokenProbability, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """New text and tokens. Text may be empty while a possible stop string or half a character is held back."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached_tokens` of the prompt were found in the cache and not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time went, seconds, measured by the services. See common.proto.

    If another router went on with the request: at that router, but for `time_to_first_token_s` and `total_s`, which are
    the client's own.
    """

    queue_s: float
    tokenize_s: float
    plan_s: float
    prefill_s: float
    transfer_s: float
    decode_s: float
    time_to_first_token_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan was expected to take: seconds from planning on, energy and money of the whole request."""

    time_to_first_token_s: float
    time_per_output_token_s: float
    energy_joules: float
    cost_usd: float
    queue_s: float
    prefill_s: float
    transfer_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """The router's decision. `mode` is None and ids are empty only if the router did not say.

    `prediction` is None where no worker's rates were known.
    """

    mode: ExecutionMode | None
    prefill_worker_id: str
    decode_worker_id: str
    matched_tokens: int
    reason: str
    prediction: Prediction | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request was planned as it was. `rejected`: the best option that was not taken, if there was one."""

    chosen: Plan
    rejected: Plan | None


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished request.

    `logprobs` has one entry per token when asked for, else none. `stop_match` is the stop string that ended the text.
    `failover_count` is how often another worker went on where one had failed, `recomputed_tokens` how many prompt
    tokens were computed once more for that when the answer had begun; both at the router that ended the request.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason
    stop_match: str | None
    usage: Usage
    timings: Timings
    plan: Plan
    request_id: str
    trace_id: str
    failover_count: int = 0
    recomputed_tokens: int = 0
