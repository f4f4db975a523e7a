"""A request's prompt as the workers are told it."""

from collections.abc import Sequence
from dataclasses import dataclass

from forebay.router.request import Request
from forebay.v1 import common_pb2


@dataclass(frozen=True, slots=True)
class Prompt:
    """`sampling` has a seed and `max_tokens`, so that every worker that goes on generates the same tokens."""

    request: Request
    token_ids: Sequence[int]
    sampling: common_pb2.SamplingParams
    vocabulary_size: int
    model_digest: str
