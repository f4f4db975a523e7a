"""Draws as the native library reads them. Knows its struct; chooses nothing."""

import ctypes
from collections.abc import Sequence as Rows

from forebay.engine.draw import Draw
from forebay.kernels.cpu.library import DrawStruct


class NativeDraws:
    """Memory that holds some draws; it must live as long as a call that reads it."""

    def __init__(self, draws: Rows[Draw]) -> None:
        """Args: draws: one for each row of logits."""
        self._draws = draws  # owns the arrays that the structs point to
        self._structs = (DrawStruct * len(draws))(*(_struct(draw) for draw in draws))

    @property
    def address(self) -> int:
        """Of the first."""
        return ctypes.addressof(self._structs)


def _struct(draw: Draw) -> DrawStruct:
    struct = DrawStruct(
        draw.point,
        draw.octaves_per_logit,
        draw.least_octaves,
        draw.top_p,
        draw.is_greedy,
        draw.top_k,
    )
    if draw.penalties is not None:
        struct.penalty_count = len(draw.penalties.token_ids)
        struct.penalty_tokens = draw.penalties.token_ids.ctypes.data
        struct.penalty_losses = draw.penalties.losses.ctypes.data
        struct.repetition = draw.penalties.repetition
    return struct
