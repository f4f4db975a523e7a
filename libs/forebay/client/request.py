"""From the caller's arguments to a `GenerateRequest`.

Ranges are the router's to judge; here only what cannot be put into the message at all is refused.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, TypedDict

from forebay.client.completion import ExecutionMode
from forebay.errors import InvalidFieldError, TokenOutOfRangeError
from forebay.rpc.channel import MAX_MESSAGE_BYTES
from forebay.v1 import common_pb2, router_pb2, tokenizer_pb2
from forebay.wire import sampling

Prompt = str | Sequence[int]
"""Plain text without a template, or token ids."""

MODE_NUMBERS: Final = {
    ExecutionMode.LOCAL: common_pb2.EXECUTION_MODE_LOCAL,
    ExecutionMode.SPLIT: common_pb2.EXECUTION_MODE_SPLIT,
    ExecutionMode.RESUME: common_pb2.EXECUTION_MODE_RESUME,
}
"""Modes on the wire."""
_FORCED_MODES: Final = {mode: MODE_NUMBERS[mode] for mode in (ExecutionMode.LOCAL, ExecutionMode.SPLIT)}
_QOS_TIERS: Final[dict[str, "common_pb2.QosTier.ValueType"]] = {
    "realtime": common_pb2.QOS_TIER_REALTIME,
    "batch": common_pb2.QOS_TIER_BATCH,
    "backup": common_pb2.QOS_TIER_BACKUP,
}


class Message(TypedDict):
    """One message of a conversation; role is "system", "user", "assistant" or "tool"."""

    role: str
    content: str


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen. Meanings, ranges and defaults: SamplingParams in common.proto."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    logprobs: int
    ignore_eos: bool


class RequestOptions(SamplingOptions, total=False):
    """All that may be said of a request beside its prompt. `None` means the same as leaving it out.

    timeout_s: seconds the whole request may take, over 0 and at most MOST_TIMEOUT_S; default: the client's.
    hedge_after_s: where several routers are known: if no token has come by then, a second one is asked the same, and
    whichever has the first token is heard. It costs the work twice; default: never.
    mode: forces the plan; for tests and research.
    session: a hint that is not used yet.
    gather_ms: for how long text after the first token may be gathered into one chunk, 0..60000.
    time_to_first_token_ms, time_per_output_token_ms: an objective, of the tier "realtime" alone. Where it is predicted
    to be missed the request is refused, with QueueFullError if it could be met later, else with SloUnattainableError,
    which tells the best there is; accepts_miss: it is served all the same.
    """

    model: str
    qos_tier: Literal["realtime", "batch", "backup"]
    time_to_first_token_ms: int
    time_per_output_token_ms: int
    accepts_miss: bool
    tenant: str
    session: str
    cache_salt: str
    request_id: str
    mode: Literal["local", "split"]
    timeout_s: float | None
    hedge_after_s: float | None
    gather_ms: int


_SAMPLING_FIELDS: Final = frozenset(SamplingOptions.__annotations__)
_OBJECTIVE_FIELDS: Final = frozenset({"time_to_first_token_ms", "time_per_output_token_ms", "accepts_miss"})
_PLAIN_FIELDS: Final = frozenset({"model", "tenant", "session", "cache_salt", "request_id", "gather_ms"})
_KNOWN_FIELDS: Final = frozenset(RequestOptions.__annotations__)
_ALLOWED: Final = {
    **sampling.ALLOWED,
    **dict.fromkeys(_PLAIN_FIELDS, "a string of valid Unicode"),
    **dict.fromkeys(_OBJECTIVE_FIELDS, f"a whole number in 1..{2**32 - 1}"),
    "accepts_miss": "true or false",
    "gather_ms": "a whole number in 0..60000",
}
_MOST_SHOWN_BITS: Final = 128
MOST_TIMEOUT_S: Final = 366 * 24 * 3600.0
"""gRPC cannot tell a server of much more: it would take the call for one whose time is over."""


def build_request(
    prompt: Prompt | None, messages: Iterable[Message] | None, options: Mapping[str, Any]
) -> router_pb2.GenerateRequest:
    """The request to send; without prompt and messages it has no input, which the router refuses.

    Raises InvalidFieldError or TokenOutOfRangeError for what the message cannot hold, TypeError for unknown options.
    """
    unknown = options.keys() - _KNOWN_FIELDS
    if unknown:
        raise TypeError(f"unexpected option {min(unknown)!r}; known are {', '.join(sorted(_KNOWN_FIELDS))}")
    given = {name: value for name, value in options.items() if value is not None}
    request = router_pb2.GenerateRequest(
        qos_tier=_chosen("qos_tier", _QOS_TIERS, given), mode=_chosen("mode", _FORCED_MODES, given)
    )
    for name in _PLAIN_FIELDS & given.keys():
        _set(request, name, given[name], name)
    for name in _OBJECTIVE_FIELDS & given.keys():
        _set(request.slo, name, given[name], f"slo.{name}")
    for name in _SAMPLING_FIELDS & given.keys():
        _set(request.sampling, name, given[name], f"sampling.{name}")
    _set_input(request, prompt, messages)
    if request.ByteSize() > MAX_MESSAGE_BYTES:
        field = "tokens.token_ids" if request.HasField("tokens") else request.WhichOneof("input") or "input"
        raise InvalidFieldError(f"a request has at most {MAX_MESSAGE_BYTES} bytes", field=field)
    return request


def timeout_of(options: Mapping[str, Any], default_s: float) -> float:
    """Seconds that a request may take. Raises InvalidFieldError."""
    given = options.get("timeout_s")
    timeout_s = default_s if given is None else given
    is_number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not (is_number and 0 < timeout_s <= MOST_TIMEOUT_S):
        message = f"timeout_s must be a number of seconds over 0 and at most {MOST_TIMEOUT_S:.0f}"
        raise InvalidFieldError(f"{message}, not {_shown(timeout_s)}", field="timeout_s")
    return float(timeout_s)


def hedge_of(options: Mapping[str, Any]) -> float | None:
    """Seconds after which a second router is asked; None: never. Raises InvalidFieldError."""
    after_s = options.get("hedge_after_s")
    is_number = isinstance(after_s, int | float) and not isinstance(after_s, bool)
    if after_s is not None and not (is_number and 0 <= after_s <= MOST_TIMEOUT_S):
        message = f"hedge_after_s must be a number of seconds from 0 up, not {_shown(after_s)}"
        raise InvalidFieldError(message, field="hedge_after_s")
    return None if after_s is None else float(after_s)


def _set_input(request: router_pb2.GenerateRequest, prompt: Prompt | None, messages: Iterable[Message] | None) -> None:
    if prompt is not None and messages is not None:
        raise InvalidFieldError("give either a prompt or messages, not both", field="input")
    if isinstance(prompt, str):
        with _fits("text", "a string of valid Unicode", prompt):
            request.text = prompt
    elif prompt is not None:
        try:
            request.tokens.CopyFrom(router_pb2.TokenIds(token_ids=prompt))
        except (ValueError, TypeError) as error:
            raise TokenOutOfRangeError("token ids are whole numbers from 0 up", field="tokens.token_ids") from error
    elif messages is not None:
        with _fits("chat.messages", "messages with a role and a content, both strings of valid Unicode", messages):
            listed = [tokenizer_pb2.ChatMessage(**message) for message in messages]
            request.chat.CopyFrom(tokenizer_pb2.ChatMessages(messages=listed))


def _set(message: Any, name: str, value: Any, field: str) -> None:
    if name == "stop" and isinstance(value, str):
        value = [value]
    with _fits(field, _ALLOWED[name], value):
        if name in {"stop", "stop_token_ids"}:
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)


def _chosen(name: str, known: Mapping[Any, Any], given: Mapping[str, Any]) -> Any:
    value = given.get(name)
    if value is None:
        return 0
    try:
        return known[value]
    except (KeyError, TypeError) as error:
        raise InvalidFieldError(f"{name} must be one of {', '.join(known)}, not {_shown(value)}", field=name) from error


@contextmanager
def _fits(field: str, allowed: str, value: object) -> Iterator[None]:
    """Turns a value that the wire type cannot hold into an error that says what the field may hold."""
    try:
        yield
    except (ValueError, TypeError) as error:
        name = field.rpartition(".")[2]
        raise InvalidFieldError(f"{name} must be {allowed}, not {_shown(value)}", field=field) from error


def _shown(value: object) -> str:
    """A number as it is. Of anything else the type alone: it may be the prompt's text."""
    if isinstance(value, float) or (type(value) is int and value.bit_length() <= _MOST_SHOWN_BITS):
        return str(value)
    return f"a value of type {type(value).__name__}"
