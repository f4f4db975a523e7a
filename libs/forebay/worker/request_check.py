"""What a worker refuses before it spends anything on a request. Knows the served model's limits, not blocks."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from forebay.engine.types import SamplingParams
from forebay.errors import (
    ContextExceededError,
    EmptyPromptError,
    InvalidFieldError,
    LayoutMismatchError,
    ModelMismatchError,
    TokenOutOfRangeError,
)
from forebay.kv.conversion import plan_conversion
from forebay.kv.layout import KvLayout
from forebay.v1 import common_pb2
from forebay.wire.layout import layout_from_proto
from forebay.wire.sampling import to_params
from forebay.worker.running_sequence import Offer

MAX_ID_CHARACTERS: Final = 128

_PRIORITIES: Final = {common_pb2.QOS_TIER_BATCH: 1, common_pb2.QOS_TIER_BACKUP: 2}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What requests are checked against. context_tokens: most tokens of prompt and output together."""

    name: str
    digest: str
    layout: KvLayout
    arithmetic: str
    vocabulary_size: int
    context_tokens: int
    eos_token_ids: tuple[int, ...]


def check_request_id(request_id: str) -> None:
    """Raises InvalidFieldError unless it is 1..128 characters."""
    if not 1 <= len(request_id) <= MAX_ID_CHARACTERS:
        raise InvalidFieldError(f"a request id has 1..{MAX_ID_CHARACTERS} characters", field="request_id")


def check_tokens(model: ServedModel, token_ids: Sequence[int], field: str) -> None:
    """Raises TokenOutOfRangeError, naming the first token that is not in the vocabulary."""
    if token_ids and max(token_ids) >= model.vocabulary_size:
        index = next(place for place, one in enumerate(token_ids) if one >= model.vocabulary_size)
        raise TokenOutOfRangeError(
            f"token id {token_ids[index]} is not below {model.vocabulary_size}", field=f"{field}[{index}]"
        )


def check_prompt(model: ServedModel, token_ids: Sequence[int], field: str) -> None:
    """Raises EmptyPromptError, TokenOutOfRangeError, or ContextExceededError when no token more would fit."""
    if not token_ids:
        raise EmptyPromptError("the prompt has no tokens", field=field)
    check_tokens(model, token_ids, field)
    if len(token_ids) >= model.context_tokens:
        raise ContextExceededError(
            f"the prompt has {len(token_ids)} tokens; the context of {model.context_tokens} must hold one more",
            field=field,
        )


def sampling_for(model: ServedModel, params: common_pb2.SamplingParams, prompt_tokens: int) -> SamplingParams:
    """The engine's parameters; without a seed a random one. Raises InvalidFieldError and ContextExceededError."""
    return to_params(
        params,
        context_left_tokens=model.context_tokens - prompt_tokens,
        eos_token_ids=model.eos_token_ids,
        seed_if_absent=secrets.randbits(64),
    )


def priority_of(qos_tier: "common_pb2.QosTier.ValueType") -> int:
    """The scheduler's priority, 0 the most urgent. Raises InvalidFieldError for a tier that is not known."""
    if qos_tier not in common_pb2.QosTier.values():
        raise InvalidFieldError(f"QoS tier {qos_tier} is not known", field="qos_tier")
    return _PRIORITIES.get(qos_tier, 0)


def deadline_of(deadline_s: float) -> float:
    """Raises InvalidFieldError unless it is a positive number of seconds."""
    if not (math.isfinite(deadline_s) and deadline_s > 0):
        raise InvalidFieldError("the deadline must be > 0 seconds", field="deadline_s")
    return deadline_s


def offer_of(model: ServedModel, manifest: common_pb2.Manifest, known_tokens: int) -> Offer:
    """The offer that a manifest of this node makes to this worker.

    known_tokens: prompt and emitted tokens, of which the last is computed here. Raises ModelMismatchError,
    LayoutMismatchError, InvalidFieldError.
    """
    _check_manifest(model, manifest, known_tokens)
    layout = layout_from_proto(manifest.layout)
    if layout != model.layout:
        raise LayoutMismatchError(
            f"the manifest's KV is not laid out as this worker's: {layout.differences(model.layout)}; start the node's"
            " workers with the same --chip-class",
            field="manifest.layout",
        )
    return Offer(epoch=manifest.epoch, token_count=manifest.token_count)


def left_behind_of(epoch: int, prompt_tokens: int, known_tokens: int) -> Offer:
    """What a lost worker left of a sequence. Raises InvalidFieldError unless a token was emitted."""
    if known_tokens == prompt_tokens:
        raise InvalidFieldError("a sequence is left behind with an emitted token at least", field="left_behind_epoch")
    # A token is emitted after the KV of all before it was written.
    return Offer(epoch=epoch, token_count=known_tokens - 1, is_left_behind=True)


def check_source(model: ServedModel, manifest: common_pb2.Manifest, known_tokens: int) -> None:
    """Raises ModelMismatchError, LayoutMismatchError or InvalidFieldError unless the blocks that a manifest of another
    node names can become this node's.
    """
    _check_manifest(model, manifest, known_tokens)
    plan_conversion((layout_from_proto(manifest.layout),), model.layout)


def _check_manifest(model: ServedModel, manifest: common_pb2.Manifest, known_tokens: int) -> None:
    if manifest.model_digest != model.digest:
        raise ModelMismatchError("the manifest is of another model", field="manifest.model_digest")
    if not 1 <= manifest.token_count < known_tokens:
        raise InvalidFieldError(
            f"the manifest covers {manifest.token_count} tokens of {known_tokens}; at least one is covered, and the"
            " last is not",
            field="manifest.token_count",
        )
