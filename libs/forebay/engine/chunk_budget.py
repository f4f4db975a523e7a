"""How many prompt tokens the next step may compute, so that steps stay short where somebody generates.

Learns from how long steps took. Pure: told times in seconds, holds no clock. Decides speed only, never a result: the
engine's bits do not depend on how a prompt is chunked.
"""

from dataclasses import dataclass, field
from typing import Final

from forebay.bounded_average import OUTLIER_FACTOR, BoundedAverage

LONGEST_STEP_S: Final = 0.06
"""Of a prompt alone: 96 to 512 rows at once are computed equally fast a row, on the machines we know."""
LEAST_ALONE_TOKENS: Final = 128
"""Fewer are bound by the weights' bytes, and a prompt would take longer in all, where nobody needs short steps."""

_SHORTEST_STEP_S: Final = 1e-6
"""No step is shorter; a clock that says so has stood still."""


@dataclass(slots=True)
class ChunkBudget:
    """Splits a step's time, seconds = decode + prompt_tokens * token, and gives prompts what decode leaves of the SLO.

    least_tokens: given in any case, so that prompts do not starve; fewer tokens teach nothing. most_tokens: given where
    nobody generates, as far as a step takes no longer than LONGEST_STEP_S by that. step_slo_s: how long a step that
    generates should take at most.
    """

    least_tokens: int
    most_tokens: int
    step_slo_s: float
    _decode_s: BoundedAverage = field(default_factory=BoundedAverage)
    _token_s: BoundedAverage = field(default_factory=BoundedAverage)

    def chunk_tokens(self, is_decoding: bool, others_step_slo_s: float | None = None) -> int:
        """Prompt tokens of the next step.

        is_decoding: whether it generates too. others_step_slo_s: of another worker that generates on the same cores and
        gets its part of them back when this step ends.
        """
        if not is_decoding and others_step_slo_s is None:
            return self._alone_tokens()
        least_tokens = min(self.least_tokens, self.most_tokens)
        if self._token_s.value is None:
            return least_tokens
        left_s = self.step_slo_s if others_step_slo_s is None else others_step_slo_s
        if is_decoding:
            left_s = min(left_s, self.step_slo_s) - (self._decode_s.value or 0.0)
        return max(least_tokens, min(self.most_tokens, int(left_s / self._token_s.value)))

    def _alone_tokens(self) -> int:
        """Where nobody generates only who comes next waits for the step's end: a new prompt, or one's own cancel."""
        if self._token_s.value is None:
            return self.most_tokens
        return min(self.most_tokens, max(LEAST_ALONE_TOKENS, int(LONGEST_STEP_S / self._token_s.value)))

    def learn(self, prompt_tokens: int, is_decoding: bool, step_s: float) -> None:
        """A step of so many prompt tokens, beside generating ones or alone, took step_s seconds."""
        if step_s < _SHORTEST_STEP_S:
            return
        if prompt_tokens == 0:
            self._decode_s.take(step_s)
            return
        decode_s = (self._decode_s.value or 0.0) if is_decoding else 0.0
        if is_decoding and step_s < decode_s:
            self._decode_s.take(step_s)  # an upper bound, also while no step comes without prompts
        if prompt_tokens >= self.least_tokens:
            # Some of it is the prompt's in any case, however the rest was misjudged.
            self._token_s.take(max(step_s - decode_s, step_s / OUTLIER_FACTOR) / prompt_tokens)
