"""Weights of tokens as whole numbers, with an arithmetic that numpy and the native kernels share bit for bit.

Knows no sampling parameters. Whole numbers add up to the same in any order, so that sums do not depend on who adds
what; each weight comes of additions and multiplications in float64 alone, which every machine rounds alike.
"""

import numpy as np
from numpy.typing import NDArray

UNIT_BITS = 42
"""The largest logit's weight is 2^42, so that 2^21 tokens have a sum below 2^63; what is below 2^-43 of it weighs 0."""

# 2^r for -1/2 <= r <= 1/2, within 4e-14 of itself (minimax, exactly 1 at 0): highest power first.
_COEFFICIENTS = (
    1.0206094884779308e-07,
    1.3255227486297374e-06,
    1.5252672051246925e-05,
    0.0001540345583961766,
    0.0013333558202056396,
    0.00961812915942186,
    0.05550410866464564,
    0.24022650695812914,
    0.6931471805599463,
    1.0,
)
_LEAST_OCTAVES = -64.0
_NEAREST = 1.5 * 2.0**52  # added, it rounds to a whole number, whose low bits are then those of the sum
_WHOLE = 2.0**52
_MANTISSA = (1 << 52) - 1
_TOGETHER = 16384  # numbers that pass through all operations at once, in the processor's cache


def octaves(logits: NDArray[np.float32], largest: float, octaves_per_logit: float) -> NDArray[np.float64]:
    """How far below the largest logit each is, as the exponent of its weight's power of two."""
    with np.errstate(over="ignore"):  # at tiny temperatures: -inf weighs nothing
        return (logits.astype(np.float64) - largest) * octaves_per_logit


def weights(octaves_V: NDArray[np.float64]) -> NDArray[np.int64]:
    """2^(octaves + UNIT_BITS), rounded to whole numbers; octaves <= 0."""
    result = np.empty(len(octaves_V), np.int64)
    for start in range(0, len(octaves_V), _TOGETHER):
        result[start : start + _TOGETHER] = _some_weights(octaves_V[start : start + _TOGETHER])
    return result


def _some_weights(octaves_V: NDArray[np.float64]) -> NDArray[np.int64]:
    bounded = np.maximum(octaves_V, _LEAST_OCTAVES)
    nearest = bounded + _NEAREST
    rest = np.subtract(bounded, nearest - _NEAREST, out=bounded)
    power = np.full_like(rest, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        power *= rest
        power += coefficient
    exponents = nearest.view(np.int64)
    exponents += UNIT_BITS
    exponents <<= 52
    bits = power.view(np.int64)
    bits += exponents
    power += _WHOLE
    bits &= _MANTISSA
    return bits
