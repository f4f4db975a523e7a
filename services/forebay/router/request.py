"""A GenerateRequest, judged wholly before any work is done for it.

Knows the request alone; what depends on the model (token range, context) is judged in `prompt_limits`.
"""

import re
import secrets
from dataclasses import dataclass
from typing import Final

from forebay.errors import EmptyPromptError, InvalidFieldError, NotServedYetError
from forebay.routing.plan import Mode
from forebay.v1 import common_pb2, router_pb2, tokenizer_pb2
from forebay.wire import sampling
from forebay.wire.mode import forced_mode_from_proto

MAX_NAME_CHARACTERS: Final = 128
MAX_INPUT_BYTES: Final = 4 * 1024 * 1024
MAX_GATHER_MS: Final = 60_000

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True, slots=True)
class Received:
    """What the caller of a resumed request has of its answer. model_digest: empty if it does not say."""

    token_ids: tuple[int, ...]
    text_characters: int
    model_digest: str


NOTHING_RECEIVED: Final = Received((), 0, "")


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

    @property
    def has_begun(self) -> bool:
        """Whether its caller has the beginning of the answer."""
        return self.received is not None and bool(self.received.token_ids)


def validate(message: router_pb2.GenerateRequest) -> Request:
    """The request, with an id and a QoS tier where it had none.

    Raises:
        InvalidFieldError, EmptyPromptError: a field is missing, malformed or out of range.
        NotServedYetError: it asks for an objective, or for the BACKUP tier.
    """
    if message.request_id and not _REQUEST_ID.fullmatch(message.request_id):
        raise InvalidFieldError("request_id must be 1..128 characters of [A-Za-z0-9._-]", field="request_id")
    if message.HasField("slo"):
        raise NotServedYetError("service level objectives are not served yet; leave slo out", field="slo")
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
    if message.qos_tier == common_pb2.QOS_TIER_BACKUP:
        raise NotServedYetError("the BACKUP tier is not served yet; choose REALTIME or BATCH", field="qos_tier")
    return message.qos_tier or common_pb2.QOS_TIER_REALTIME
