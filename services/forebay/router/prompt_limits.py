"""What a prompt must be for the model that is served, and the sampling parameters every worker will see."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from forebay.errors import (
    ContextExceededError,
    EmptyPromptError,
    InvalidFieldError,
    ModelMismatchError,
    TokenOutOfRangeError,
    UnknownModelError,
)
from forebay.router.request import Received, Request
from forebay.v1 import common_pb2


@dataclass(frozen=True, slots=True)
class DescribedModel:
    """The model as the tokenizer describes it."""

    name: str
    digest: str
    vocabulary_size: int
    context_tokens: int


def check_model(request: Request, model: DescribedModel) -> None:
    """Raises UnknownModelError or ModelMismatchError for a model, named or that began the answer, not served here."""
    if request.model and request.model != model.name:
        message = f"a model of this name is not served here; {model.name} is"
        raise UnknownModelError(message, field="model", served=model.name)
    if request.received is not None and request.received.model_digest not in ("", model.digest):
        message = "the answer was begun by another model than is served now; ask again from the beginning"
        raise ModelMismatchError(message, field="resume.model_digest", served=model.digest)


def admit(request: Request, token_ids: Sequence[int], model: DescribedModel) -> common_pb2.SamplingParams:
    """Checks the prompt, the token ids that end its answer, and those that a resumed one has, against the model.

    Returns:
        The request's sampling with `max_tokens` and `seed` filled in, so that all workers agree on them.

    Raises:
        EmptyPromptError, TokenOutOfRangeError, ContextExceededError; InvalidFieldError for more than max_tokens.
    """
    if not token_ids:
        raise EmptyPromptError("the prompt has no tokens", field=request.input_field)
    _check_vocabulary(token_ids, model, request.input_field)
    _check_vocabulary(request.sampling.stop_token_ids, model, "sampling.stop_token_ids")
    left_tokens = model.context_tokens - len(token_ids)
    if left_tokens < 1:
        raise _exceeded(request.input_field, f"the prompt has {len(token_ids)} tokens", len(token_ids), model)
    sampling = common_pb2.SamplingParams()
    sampling.CopyFrom(request.sampling)
    if not sampling.HasField("max_tokens"):
        sampling.max_tokens = left_tokens
    elif sampling.max_tokens > left_tokens:
        text = f"the prompt has {len(token_ids)} tokens and max_tokens is {sampling.max_tokens}"
        raise _exceeded("sampling.max_tokens", text, len(token_ids), model)
    if not sampling.HasField("seed"):
        sampling.seed = secrets.randbits(64)
    if request.received is not None:
        _check_received(request.received, sampling.max_tokens, model)
    return sampling


def _check_received(received: Received, max_tokens: int, model: DescribedModel) -> None:
    _check_vocabulary(received.token_ids, model, "resume.emitted_token_ids")
    if len(received.token_ids) > max_tokens:
        raise InvalidFieldError(
            f"{len(received.token_ids)} tokens were received, but the answer has at most {max_tokens}",
            field="resume.emitted_token_ids",
        )


def _check_vocabulary(token_ids: Sequence[int], model: DescribedModel, field: str) -> None:
    if max(token_ids, default=0) >= model.vocabulary_size:
        index = next(i for i, token_id in enumerate(token_ids) if token_id >= model.vocabulary_size)
        raise TokenOutOfRangeError(
            f"token id {token_ids[index]} is not in 0..{model.vocabulary_size - 1}", field=f"{field}[{index}]"
        )


def _exceeded(field: str, text: str, prompt_tokens: int, model: DescribedModel) -> ContextExceededError:
    return ContextExceededError(
        f"{text}, but the context holds {model.context_tokens}",
        field=field,
        prompt_tokens=str(prompt_tokens),
        context_tokens=str(model.context_tokens),
    )
