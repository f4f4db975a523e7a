"""Rotary position embedding: how fast each pair of a head turns. Knows configurations only; no tensor library."""

import math

import numpy as np
from numpy.typing import NDArray

from forebay.models.config import DecoderConfig, RopeScaling


def rope_frequencies(config: DecoderConfig) -> NDArray[np.float32]:
    """Radians per position of each of the head_dim / 2 pairs, float32 as the models were trained with."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = (1.0 / np.float32(config.rope_theta) ** exponents).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return (frequencies / np.float32(scaling.factor)).astype(np.float32)
    return _llama3_frequencies(frequencies, scaling)


def _llama3_frequencies(frequencies: NDArray[np.float32], scaling: RopeScaling) -> NDArray[np.float32]:
    """Long wavelengths are stretched by the factor, short ones kept, those between blended (Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    turns = scaling.original_context_tokens / wavelengths
    width = scaling.high_freq_factor - scaling.low_freq_factor
    kept = np.clip((turns - scaling.low_freq_factor) / width, 0.0, 1.0)
    return ((1 - kept) * frequencies / scaling.factor + kept * frequencies).astype(np.float32)
