"""A GenerateRequest, judged wholly before any work is done for it.

Knows the request alone; what depends on the model (token range, context) is judged in `prompt_limits`.
"""

import re
import secrets
from dataclasses import dataclass
from typing import Final

from forebay.errors import EmptyPromptError, InvalidFieldError
from forebay.routing.option import DEFAULT_OUTPUT_TOKENS, Mode, QosTier, Target
from forebay.v1 import common_pb2, router_pb2, tokenizer_pb2
from forebay.wire import sampling
from forebay.wire.mode import forced_mode_from_proto

MAX_NAME_CHARACTERS: Final = 128
MAX_INPUT_BYTES: Final = 4 * 1024 * 1024
MAX_GATHER_MS: Final = 60_000

_TIERS: Final = {
    common_pb2.QOS_TIER_REALTIME: QosTier.REALTIME,
    common_pb2.QOS_TIER_BATCH: QosTier.BATCH,
    common_pb2.QOS_TIER_BACKUP: QosTier.BACKUP,
}
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Received:
    """What the caller of a resumed request has of its answer. model_digest: empty if it does not say."""

    token_ids: tuple[int, ...]
    text_characters: int
    model_digest: str


NOTHING_RECEIVED: Final = Received((), 0, "")


@dataclass(frozen=True, slots=True)
class Slo:
    """What the caller hopes for; accepts_miss: and takes less."""

    target: Target
    accepts_miss: bool


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose fields are all in range. Exactly one of `encode_input` and `token_ids` is set."""

    request_id: str
    model: str
    encode_input: tokenizer_pb2.EncodeInput | None
    token_ids: tuple[int, ...] | None
    input_field: str  # name of the field the prompt came in
    sampling: common_pb2.SamplingParams
    qos_tier: common_pb2.QosTier.ValueType
    tenant: str
    cache_salt: str
    forced_mode: Mode | None
    gather_ms: int
    received: Received | None  # None: nobody has tried before
    slo: Slo | None  # None: the tier's own target

    @property
    def tier(self) -> QosTier:
        """The QoS tier as the planner knows it."""
        return _TIERS[self.qos_tier]

    @property
    def target(self) -> Target:
        """What it should meet."""
        return Target() if self.slo is None else self.slo.target

    @property
    def expected_output_tokens(self) -> int:
        """Tokens it is expected to generate."""
        if not self.sampling.HasField("max_tokens"):
            return DEFAULT_OUTPUT_TOKENS
        most_tokens = self.sampling.max_tokens
        return most_tokens if self.sampling.ignore_eos else min(most_tokens, DEFAULT_OUTPUT_TOKENS)

    @property
    def has_begun(self) -> bool:
        """Whether its caller has the beginning of the answer."""
        return self.received is not None and bool(self.received.token_ids)


def validate(message: router_pb2.GenerateRequest) -> Request:
    """The request, with an id and a QoS tier where it had none.

    Raises:
        InvalidFieldError, EmptyPromptError: a field is missing, malformed or out of range.
    """
    if message.request_id and not _REQUEST_ID.fullmatch(message.request_id):
        raise InvalidFieldError("request_id must be 1..128 characters of [A-Za-z0-9._-]", field="request_id")
    encode_input, token_ids, input_field = _input(message)
    if encode_input is not None and encode_input.ByteSize() > MAX_INPUT_BYTES:
        raise InvalidFieldError(f"{input_field} has at most {MAX_INPUT_BYTES} bytes of UTF-8", field=input_field)
    sampling.validate(message.sampling)
    for name, text in (("tenant", message.tenant), ("cache_salt", message.cache_salt)):
        if len(text) > MAX_NAME_CHARACTERS:
            raise InvalidFieldError(f"{name} has at most {MAX_NAME_CHARACTERS} characters, not {len(text)}", field=name)
    if message.gather_ms > MAX_GATHER_MS:
        raise InvalidFieldError(f"gather_ms is 0..{MAX_GATHER_MS}, not {message.gather_ms}", field="gather_ms")
    return Request(
        request_id=message.request_id or secrets.token_hex(16),
        model=message.model,
        encode_input=encode_input,
        token_ids=token_ids,
        input_field=input_field,
        sampling=message.sampling,
        qos_tier=_qos_tier(message),
        tenant=message.tenant,
        cache_salt=message.cache_salt,
        forced_mode=forced_mode_from_proto(message.mode),
        # What is generated behind a stop string, before the router has seen it, is for nothing.
        gather_ms=0 if message.sampling.stop else message.gather_ms,
        received=_received(message) if message.HasField("resume") else None,
        slo=_slo(message) if message.HasField("slo") else None,
    )


def _received(message: router_pb2.GenerateRequest) -> Received:
    resume = message.resume
    if resume.emitted_token_ids and not message.request_id:
        raise InvalidFieldError("a request is resumed by the id that Started told", field="request_id")
    if resume.emitted_token_ids and not message.sampling.HasField("seed"):
        raise InvalidFieldError("a request is resumed with the seed that Started told", field="sampling.seed")
    if resume.text_characters and not resume.emitted_token_ids:
        raise InvalidFieldError(
            f"no tokens have no text, not {resume.text_characters} characters", field="resume.text_characters"
        )
    return Received(tuple(resume.emitted_token_ids), resume.text_characters, resume.model_digest)


def _slo(message: router_pb2.GenerateRequest) -> Slo:
    slo, default = message.slo, Target()
    if _qos_tier(message) != common_pb2.QOS_TIER_REALTIME:
        raise InvalidFieldError(
            "only REALTIME has an objective; BATCH and BACKUP have the call's deadline", field="slo"
        )
    for name in ("time_to_first_token_ms", "time_per_output_token_ms"):
        if slo.HasField(name) and getattr(slo, name) == 0:
            raise InvalidFieldError(f"{name} must be at least 1, not 0", field=f"slo.{name}")
    first_s, token_s = slo.time_to_first_token_ms / 1e3, slo.time_per_output_token_ms / 1e3
    target = Target(first_s or default.time_to_first_token_s, token_s or default.time_per_output_token_s)
    return Slo(target, slo.accepts_miss)


def _input(
    message: router_pb2.GenerateRequest,
) -> tuple[tokenizer_pb2.EncodeInput | None, tuple[int, ...] | None, str]:
    match message.WhichOneof("input"):
        case "text":
            return tokenizer_pb2.EncodeInput(text=message.text), None, "text"
        case "chat":
            if not message.chat.messages:
                raise InvalidFieldError("a conversation has at least one message", field="chat.messages")
            return tokenizer_pb2.EncodeInput(chat=message.chat), None, "chat"
        case "tokens":
            if not message.tokens.token_ids:
                raise EmptyPromptError("the prompt has no tokens", field="tokens.token_ids")
            return None, tuple(message.tokens.token_ids), "tokens.token_ids"
        case _:
            raise InvalidFieldError("exactly one of text, chat and tokens must be set", field="input")


def _qos_tier(message: router_pb2.GenerateRequest) -> common_pb2.QosTier.ValueType:
    if message.qos_tier not in common_pb2.QosTier.values():
        raise InvalidFieldError(f"{message.qos_tier} is not a QoS tier", field="qos_tier")
    return message.qos_tier or common_pb2.QOS_TIER_REALTIME
