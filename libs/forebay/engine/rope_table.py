"""Rotary position embedding on torch: the angle of each position. Knows no tensors of a step and no arena."""

import numpy as np
import torch
from torch import Tensor

from forebay.engine.rope import rope_frequencies
from forebay.kernels.port import RopeRows
from forebay.models.config import DecoderConfig

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
