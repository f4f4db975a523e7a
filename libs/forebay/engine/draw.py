"""What decides one token beside its logits: the numbers that the numpy sampler and the native one both start from.

Knows sampling parameters, seeds and the tokens seen so far. Does not see logits.
"""

import math
import struct
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from forebay.engine.types import SamplingParams, Sequence

POINT_BITS = 53
_MOST_OCTAVES_PER_LOGIT = 1e300  # a tiny temperature must not become an infinity, which times 0 is a NaN


@dataclass(frozen=True, slots=True)
class Penalties:
    """How the logits of the tokens seen change; no other token's does.

    Repetition counts prompt and output (Keskar et al. 2019), frequency and presence the output only (OpenAI).
    """

    token_ids: NDArray[np.int32]  # ascending
    losses: NDArray[np.float32]  # of each: subtracted after the factor
    repetition: float  # divides positive and multiplies negative logits


@dataclass(frozen=True, slots=True)
class Draw:
    """How one token is chosen. The filters' order is vLLM's: penalties, temperature, min_p, top_k, top_p.

    A token's weight is 2^((logit - largest logit) * octaves_per_logit).
    """

    is_greedy: bool
    point: int  # of POINT_BITS bits: the random number, times 2^POINT_BITS
    octaves_per_logit: float
    least_octaves: float  # log2(min_p): tokens with less stay out
    top_k: int  # 0: off
    top_p: float  # >= 1: off
    penalties: Penalties | None


def draw_of(sequence: Sequence) -> Draw:
    """How the sequence's next token is chosen."""
    sampling = sequence.sampling
    is_greedy = sampling.temperature == 0
    return Draw(
        is_greedy,
        0 if is_greedy else random_point(sampling.seed, len(sequence.output_token_ids)),
        0.0 if is_greedy else min(math.log2(math.e) / sampling.temperature, _MOST_OCTAVES_PER_LOGIT),
        math.log2(sampling.min_p) if sampling.min_p > 0 else -math.inf,
        sampling.top_k,
        sampling.top_p,
        _penalties(sequence, sampling),
    )


def random_point(seed: int, index: int) -> int:
    """The random number of the output token at that index: the top bits of xxh3_64(seed, index)."""
    digest: int = xxhash.xxh3_64_intdigest(struct.pack("<QQ", seed % 2**64, index))
    return digest >> (64 - POINT_BITS)


def _penalties(sequence: Sequence, sampling: SamplingParams) -> Penalties | None:
    has_losses = sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
    output = sequence.output_token_ids if has_losses else []
    seen = sequence.prompt_token_ids + sequence.output_token_ids if sampling.repetition_penalty != 1 else output
    if not seen:
        return None
    token_ids = np.unique(np.array(seen, np.int32))
    losses = np.zeros(len(token_ids), np.float32)
    if output:
        used, counts = np.unique(np.array(output, np.int32), return_counts=True)
        loss = sampling.frequency_penalty * counts + sampling.presence_penalty
        losses[np.searchsorted(token_ids, used)] = loss.astype(np.float32)
    return Penalties(token_ids, losses, sampling.repetition_penalty)
