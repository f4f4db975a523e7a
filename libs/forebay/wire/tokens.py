"""Tokens and their ends as the protos write them."""

from typing import Final

from forebay.engine.scheduler import FinishReason
from forebay.engine.types import TokenLogprobs
from forebay.v1 import common_pb2

FINISH_REASONS: Final = {
    FinishReason.STOP: common_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: common_pb2.FINISH_REASON_LENGTH,
}


def logprobs_to_proto(token_id: int, logprobs: TokenLogprobs) -> common_pb2.TokenLogprobs:
    """Log-probabilities at the position of a chosen token."""
    return common_pb2.TokenLogprobs(
        chosen=common_pb2.TokenProbability(token_id=token_id, logprob=logprobs.logprob),
        alternatives=[
            common_pb2.TokenProbability(token_id=one, logprob=logprob) for one, logprob in logprobs.alternatives
        ],
    )
