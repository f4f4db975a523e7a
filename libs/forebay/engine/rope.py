"""Rotary position embedding: the angle of each position. Knows no tensors of a step and no arena."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forebay.kernels.port import RopeRows
from forebay.models.config import DecoderConfig, RopeScaling

PAGE_POSITIONS = 1024


class RopeTable:
    """Cosines and sines of positions, computed by whole pages: a position's bits never depend on a step's size."""

    def __init__(self, config: DecoderConfig) -> None:
        self._frequencies = rope_frequencies(config)
        half = len(self._frequencies)
        self._cos = torch.empty((0, 1, 1, half))
        self._signed_sin = torch.empty((0, 1, 2, half))

    def rows(self, positions_M: Tensor, position_count: int) -> RopeRows:
        """Rows of these positions (int64), all of which are below position_count."""
        while self._cos.shape[0] < position_count:
            self._add_page()
        return RopeRows(self._cos.index_select(0, positions_M), self._signed_sin.index_select(0, positions_M))

    def _add_page(self) -> None:
        first = self._cos.shape[0]
        positions = np.arange(first, first + PAGE_POSITIONS, dtype=np.float32)
        angles = np.outer(positions, self._frequencies).astype(np.float32).astype(np.float64)
        cos = torch.from_numpy(np.cos(angles).astype(np.float32))[:, None, None]
        sin = torch.from_numpy(np.sin(angles).astype(np.float32))[:, None]
        self._cos = torch.cat([self._cos, cos])
        self._signed_sin = torch.cat([self._signed_sin, torch.stack([-sin, sin], 2)])


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
