"""Choosing a token from logits. Knows one row at a time; nothing of batches, tensors on devices, or stopping.

The token at output index i depends only on the logits, the sampling parameters, (seed, i), and, with penalties, the
tokens before it: not on the batch, the process, or what was drawn before. Filters follow vLLM's order: penalties,
temperature, min_p, top_k, top_p.
"""

import struct
from collections.abc import Sequence as Rows

import numpy as np
import xxhash
from numpy.typing import NDArray

from forebay.engine.types import Sampled, SamplingParams, Sequence, TokenLogprobs
from forebay.errors import NumericFailureError

Row = NDArray[np.float32]


def sample(logits_SV: Row, sequences: Rows[Sequence]) -> list[Sampled]:
    """One outcome per row.

    Args:
        logits_SV: float32 [S, vocabulary]; not changed. A row with NaN or an infinity yields an error of its own.
        sequences: whose row it is.
    """
    # One argmax for all rows: a greedy batch then costs next to nothing.
    greedy_ids = logits_SV.argmax(-1)
    is_finite = [bool(np.isfinite(logits).all()) for logits in logits_SV]
    return [
        _sample_row(logits_SV[row], int(greedy_ids[row]), sequence) if is_finite[row] else _failed(sequence)
        for row, sequence in enumerate(sequences)
    ]


def uniform(seed: int, index: int) -> float:
    """The random number in [0, 1) of the output token at that index: the top 53 bits of xxh3_64(seed, index)."""
    digest = xxhash.xxh3_64_intdigest(struct.pack("<QQ", seed % 2**64, index))
    return (digest >> 11) * 2.0**-53


def log_probabilities(logits_V: Row, token_id: int, alternative_count: int) -> TokenLogprobs:
    """log_softmax of raw logits for one token and the likeliest ones; of equals the lower id comes first."""
    logits = logits_V.astype(np.float64)
    normalizer = logits.max() + np.log(np.exp(logits - logits.max()).sum())
    candidates = _likeliest(logits_V, alternative_count)
    return TokenLogprobs(
        float(logits[token_id] - normalizer),
        tuple((int(candidate), float(logits[candidate] - normalizer)) for candidate in candidates),
    )


def _failed(sequence: Sequence) -> Sampled:
    error = NumericFailureError("the model produced NaN or infinite logits for this sequence")
    return Sampled(sequence.sequence_id, None, error=error)


def _sample_row(logits_V: Row, greedy_id: int, sequence: Sequence) -> Sampled:
    sampling = sequence.sampling
    penalized = _penalized(logits_V, sequence)
    if sampling.temperature == 0:
        token_id = greedy_id if penalized is logits_V else int(penalized.argmax())
    else:
        token_id = _draw(penalized, sampling, uniform(sampling.seed, len(sequence.output_token_ids)))
    logprobs = None if sampling.logprobs is None else log_probabilities(logits_V, token_id, sampling.logprobs)
    return Sampled(sequence.sequence_id, token_id, logprobs)


def _penalized(logits_V: Row, sequence: Sequence) -> Row:
    """Repetition counts prompt and output (Keskar et al. 2019), frequency and presence the output only (OpenAI)."""
    sampling = sequence.sampling
    penalized = logits_V
    if sampling.repetition_penalty != 1:
        seen = np.unique(np.array(sequence.prompt_token_ids + sequence.output_token_ids, dtype=np.int64))
        penalized = logits_V.copy()
        scores = penalized[seen]
        factor = np.float32(sampling.repetition_penalty)
        penalized[seen] = np.where(scores > 0, scores / factor, scores * factor)
    if (sampling.frequency_penalty or sampling.presence_penalty) and sequence.output_token_ids:
        token_ids, counts = np.unique(np.array(sequence.output_token_ids, dtype=np.int64), return_counts=True)
        penalized = penalized.copy() if penalized is logits_V else penalized
        loss = sampling.frequency_penalty * counts + sampling.presence_penalty
        penalized[token_ids] -= loss.astype(np.float32)
    return penalized


def _draw(logits_V: Row, sampling: SamplingParams, point: float) -> int:
    """Inverse of the cumulative distribution at `point`, over the kept tokens in the order `_kept` gives them."""
    # Divided in float64: a tiny temperature must not overflow, and the largest scaled logit is exactly 0.
    scaled = (logits_V.astype(np.float64) - float(logits_V.max())) / sampling.temperature
    token_ids = _kept(scaled, sampling)
    cumulative = np.exp(scaled if token_ids is None else scaled[token_ids]).cumsum()
    place = int(np.searchsorted(cumulative, point * cumulative[-1], side="right"))
    place = min(place, len(cumulative) - 1)  # point * total may round up to the total
    return place if token_ids is None else int(token_ids[place])


def _kept(scaled_V: NDArray[np.float64], sampling: SamplingParams) -> NDArray[np.int64] | None:
    """Ids that the filters keep, or None when all stay. With top_p: likeliest first; else ascending."""
    has_top_k = 0 < sampling.top_k < len(scaled_V)
    if not has_top_k and sampling.top_p >= 1 and sampling.min_p <= 0:
        return None
    floor = -np.inf if sampling.min_p <= 0 else np.log(sampling.min_p)
    if has_top_k:
        # Of tokens that share the k-th logit all stay, as in vLLM.
        floor = max(floor, np.partition(scaled_V, -sampling.top_k)[-sampling.top_k])
    token_ids = np.flatnonzero(scaled_V >= floor)
    return token_ids if sampling.top_p >= 1 else _nucleus(scaled_V, token_ids, sampling.top_p)


def _nucleus(scaled_V: NDArray[np.float64], token_ids: NDArray[np.int64], top_p: float) -> NDArray[np.int64]:
    """The fewest likeliest of the tokens whose share reaches top_p (Holtzman et al. 2020), likeliest first."""
    probabilities = np.exp(scaled_V[token_ids])
    probabilities /= probabilities.sum()
    # Tokens below this share sum to less than 1 - top_p, so none of them can be in the nucleus and need sorting.
    is_possible = probabilities >= (1 - top_p) / len(token_ids)
    token_ids, probabilities = token_ids[is_possible], probabilities[is_possible]
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    is_needed = before < top_p
    is_needed[0] = True  # top_p = 0 is greedy
    return token_ids[order[is_needed]]


def _likeliest(logits_V: Row, count: int) -> NDArray[np.int64]:
    count = min(count, len(logits_V))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    candidates = np.flatnonzero(logits_V >= np.partition(logits_V, -count)[-count])
    return candidates[np.argsort(-logits_V[candidates], kind="stable")][:count]
