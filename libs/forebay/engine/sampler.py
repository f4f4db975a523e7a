"""Choosing a token from logits, in numpy. Knows one row at a time; nothing of batches, devices, or stopping.

The token at output index i depends only on the logits, the sampling parameters, (seed, i), and, with penalties, the
tokens before it: not on the batch, the process, or what was drawn before. The native kernels (native/sampler.h) choose
the same token, always: both add up the same whole numbers (see `token_weights`).
"""

import math
from collections.abc import Sequence as Rows

import numpy as np
from numpy.typing import NDArray

from forebay.engine.draw import POINT_BITS, Draw, Penalties, draw_of
from forebay.engine.token_weights import UNIT_BITS, octaves, weights
from forebay.engine.types import Sampled, Sequence, TokenLogprobs
from forebay.errors import NumericFailureError

Row = NDArray[np.float32]

_LARGEST = np.finfo(np.float32).max
_TOGETHER = 8192  # numbers in float64 at once: memory for a whole row would be mapped and cleared anew each time


def sample(logits_SV: Row, sequences: Rows[Sequence]) -> list[Sampled]:
    """One outcome per row.

    Args:
        logits_SV: float32 [S, vocabulary]; not changed. A row with NaN or an infinity yields an error of its own.
        sequences: whose row it is.
    """
    return [
        sampled(sequence, logits, choose(logits, draw_of(sequence)) if np.isfinite(logits).all() else None)
        for logits, sequence in zip(logits_SV, sequences, strict=True)
    ]


def sampled(sequence: Sequence, logits_V: Row, token_id: int | None) -> Sampled:
    """The outcome for a sequence whose token was chosen; None: its logits are not finite."""
    if token_id is None:
        error = NumericFailureError("the model produced NaN or infinite logits for this sequence")
        return Sampled(sequence.sequence_id, None, error=error)
    count = sequence.sampling.logprobs
    logprobs = None if count is None else log_probabilities(logits_V, token_id, count)
    return Sampled(sequence.sequence_id, token_id, logprobs)


def choose(logits_V: Row, draw: Draw) -> int:
    """The token that the draw takes from finite logits; of equals the lower id is the likelier.

    The logits must be writable: those of penalized tokens are put back before it returns.
    """
    if draw.penalties is None:
        return _choose(logits_V, draw)
    seen = draw.penalties.token_ids
    raw = logits_V[seen]
    logits_V[seen] = _penalized(raw, draw.penalties)
    try:
        return _choose(logits_V, draw)
    finally:
        logits_V[seen] = raw


def log_probabilities(logits_V: Row, token_id: int, alternative_count: int) -> TokenLogprobs:
    """log_softmax of raw logits for one token and the likeliest ones; of equals the lower id comes first."""
    normalizer = _log_sum_of_exp(logits_V)
    candidates = _likeliest(logits_V, alternative_count)
    return TokenLogprobs(
        float(logits_V[token_id]) - normalizer,
        tuple((int(candidate), float(logits_V[candidate]) - normalizer) for candidate in candidates),
    )


def _log_sum_of_exp(logits_V: Row) -> float:
    largest = float(logits_V.max())
    total = 0.0
    for start in range(0, len(logits_V), _TOGETHER):
        some = logits_V[start : start + _TOGETHER].astype(np.float64)
        some -= largest
        total += float(np.exp(some, out=some).sum())
    return largest + math.log(total)


def _penalized(logits: Row, penalties: Penalties) -> Row:
    factor = np.float32(penalties.repetition)
    with np.errstate(over="ignore"):  # what leaves the range of float32 becomes its largest number
        scaled = np.where(logits > 0, logits / factor, logits * factor)
        return np.clip(scaled - penalties.losses, -_LARGEST, _LARGEST)


def _choose(logits_V: Row, draw: Draw) -> int:
    if draw.is_greedy:
        return int(logits_V.argmax())
    octaves_V = octaves(logits_V, float(logits_V.max()), draw.octaves_per_logit)
    token_ids = _kept(octaves_V, draw)
    if token_ids is None:
        return _place(weights(octaves_V), draw.point)
    weight = weights(octaves_V[token_ids])
    if draw.top_p >= 1:
        return int(token_ids[_place(weight, draw.point)])
    likely = _likely(octaves_V[token_ids], weight, draw.top_p)
    order = likely[np.argsort(-logits_V[token_ids[likely]], kind="stable")]
    cumulative = weight[order].cumsum()
    nucleus = 1 + int(np.searchsorted(cumulative, _needed(int(weight.sum()), draw.top_p)))
    return int(token_ids[order[_place(weight[order[:nucleus]], draw.point)]])


def _place(weight: NDArray[np.int64], point: int) -> int:
    """Inverse of the cumulative distribution."""
    cumulative = weight.cumsum()
    target = point * int(cumulative[-1]) >> POINT_BITS
    return int(np.searchsorted(cumulative, target, side="right"))


def _kept(octaves_V: NDArray[np.float64], draw: Draw) -> NDArray[np.int64] | None:
    """Ids that min_p and top_k leave, ascending; None when no filter is on."""
    has_top_k = 0 < draw.top_k < len(octaves_V)
    if not has_top_k and draw.top_p >= 1 and draw.least_octaves == -math.inf:
        return None
    least_octaves = draw.least_octaves
    if has_top_k:
        # Of tokens that share the k-th logit all stay, as in vLLM.
        least_octaves = max(least_octaves, np.partition(octaves_V, -draw.top_k)[-draw.top_k])
    return np.flatnonzero(octaves_V >= least_octaves)


def _needed(total: int, top_p: float) -> int:
    """The sum of weights that the nucleus has to reach; top_p = 0 is greedy."""
    return min(max(math.ceil(top_p * total), 1), total)


def _likely(octaves_K: NDArray[np.float64], weight_K: NDArray[np.int64], top_p: float) -> NDArray[np.int64]:
    """Places of the tokens that may be in the nucleus: the fewest likeliest that reach top_p (Holtzman et al. 2020).

    The others weigh less than all of them together may, so that nobody need sort them.
    """
    total = int(weight_K.sum())
    spare = (total - _needed(total, top_p)) / len(weight_K)
    if spare < 2:  # rounding a weight to a whole number may double it
        return np.arange(len(weight_K))
    return np.flatnonzero(octaves_K >= math.log2(spare) - UNIT_BITS - 1)


def _likeliest(logits_V: Row, count: int) -> NDArray[np.int64]:
    count = min(count, len(logits_V))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    candidates = np.flatnonzero(logits_V >= np.partition(logits_V, -count)[-count])
    return candidates[np.argsort(-logits_V[candidates], kind="stable")][:count]
