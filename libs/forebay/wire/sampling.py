"""SamplingParams on the wire: refused where out of range, else turned into the engine's with every default filled in.

The one place that knows these ranges (stated in common.proto); router and workers both use it. Imports no torch.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

from forebay.engine.types import SamplingParams
from forebay.errors import ContextExceededError, InvalidFieldError
from forebay.v1 import common_pb2

MAX_STOP_STRINGS = 16
MAX_STOP_CHARACTERS = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGPROBS = 20

_INFINITY = math.inf
_MOST_INT32 = 2**31 - 1
# field: (least, least is allowed, most, range in words)
_FLOAT_RANGES = {
    "temperature": (0.0, True, _INFINITY, "a finite number >= 0"),
    "top_p": (0.0, False, 1.0, "a number in (0, 1]"),
    "min_p": (0.0, True, 1.0, "a number in [0, 1]"),
    "repetition_penalty": (0.0, False, _INFINITY, "a finite number > 0"),
    "presence_penalty": (-2.0, True, 2.0, "a number in [-2, 2]"),
    "frequency_penalty": (-2.0, True, 2.0, "a number in [-2, 2]"),
}
_INT_RANGES = {
    "max_tokens": (1, _MOST_INT32),
    "top_k": (0, _MOST_INT32),
    "logprobs": (0, MAX_LOGPROBS),
}

ALLOWED: Final[Mapping[str, str]] = {
    **{name: words for name, (_, _, _, words) in _FLOAT_RANGES.items()},
    **{name: f"a whole number in {low}..{high}" for name, (low, high) in _INT_RANGES.items()},
    "seed": f"a whole number in 0..{2**64 - 1}",
    "stop": f"at most {MAX_STOP_STRINGS} strings of 1..{MAX_STOP_CHARACTERS} characters",
    "stop_token_ids": f"at most {MAX_STOP_TOKEN_IDS} token ids, whole numbers in 0..{2**32 - 1}",
    "ignore_eos": "true or false",
}
"""What each field may be, in words that follow "must be"."""


def validate(params: common_pb2.SamplingParams) -> None:
    """Raises InvalidFieldError, naming the field as `sampling.NAME`, if anything is out of its range."""
    for name, (least, is_least_allowed, most, _) in _FLOAT_RANGES.items():
        if _is_given(params, name):
            number: float = getattr(params, name)
            is_above = number >= least if is_least_allowed else number > least
            if not (math.isfinite(number) and is_above and number <= most):
                raise _out_of_range(name, f"{number:g}")
    for name, (low, high) in _INT_RANGES.items():
        if _is_given(params, name):
            count: int = getattr(params, name)
            if not low <= count <= high:
                raise _out_of_range(name, str(count))
    _validate_stops(params)


def to_params(
    params: common_pb2.SamplingParams,
    *,
    context_left_tokens: int,
    eos_token_ids: Iterable[int],
    seed_if_absent: int,
) -> SamplingParams:
    """Validated parameters with defaults.

    context_left_tokens: what the prompt leaves of the context. Raises InvalidFieldError, and ContextExceededError when
    the prompt leaves nothing or max_tokens asks for more than is left.
    """
    validate(params)
    if context_left_tokens < 1:
        raise ContextExceededError("the prompt leaves no room for a token in the model's context")
    if params.HasField("max_tokens") and params.max_tokens > context_left_tokens:
        raise ContextExceededError(
            f"max_tokens is {params.max_tokens}, but the prompt leaves room for {context_left_tokens}",
            field="sampling.max_tokens",
        )
    stop_token_ids = frozenset(params.stop_token_ids)
    given = {name: getattr(params, name) for name in (*_FLOAT_RANGES, "top_k") if _is_given(params, name)}
    return SamplingParams(
        max_tokens=params.max_tokens if params.HasField("max_tokens") else context_left_tokens,
        seed=params.seed if params.HasField("seed") else seed_if_absent,
        stop_token_ids=stop_token_ids if params.ignore_eos else stop_token_ids.union(eos_token_ids),
        logprobs=params.logprobs if params.HasField("logprobs") else None,
        **given,
    )


def _is_given(params: common_pb2.SamplingParams, name: str) -> bool:
    return params.HasField(name)  # type: ignore[arg-type]  # the stub wants each name as a literal


def _validate_stops(params: common_pb2.SamplingParams) -> None:
    if len(params.stop) > MAX_STOP_STRINGS:
        raise _invalid("stop", f"at most {MAX_STOP_STRINGS} stop strings are allowed, not {len(params.stop)}")
    for index, text in enumerate(params.stop):
        if not 1 <= len(text) <= MAX_STOP_CHARACTERS:
            raise _invalid(f"stop[{index}]", f"a stop string has 1..{MAX_STOP_CHARACTERS} characters, not {len(text)}")
    if len(params.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        count = len(params.stop_token_ids)
        raise _invalid("stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} stop token ids are allowed, not {count}")


def _out_of_range(name: str, given: str) -> InvalidFieldError:
    return _invalid(name, f"{name} must be {ALLOWED[name]}, not {given}")


def _invalid(name: str, message: str) -> InvalidFieldError:
    return InvalidFieldError(message, field=f"sampling.{name}")
