"""What was asked of a router lately: how often, how long prompts and answers were. Pure; memory is bounded.

Times are those of one clock of the caller's.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final, NamedTuple

WINDOW_S: Final = 60.0
_SLICE_S: Final = 5.0


class Demand(NamedTuple):
    """What came within so many seconds. cached_tokens, output_tokens: of the answers that ended within them."""

    seconds: float = 0.0
    requests: int = 0
    prompt_tokens: int = 0
    answers: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0

    def plus(self, other: "Demand") -> "Demand":
        """What two routers were asked meanwhile."""
        return Demand(max(self.seconds, other.seconds), *(a + b for a, b in zip(self[1:], other[1:], strict=True)))

    @property
    def requests_per_s(self) -> float:
        """How often."""
        return self.requests / self.seconds if self.seconds > 0 else 0.0

    @property
    def tokens_per_prompt(self) -> float:
        """On average; 0 where nothing came."""
        return self.prompt_tokens / self.requests if self.requests else 0.0

    @property
    def cached_per_prompt(self) -> float:
        """Of these, as far as answers have told."""
        return self.cached_tokens / self.answers if self.answers else 0.0

    @property
    def tokens_per_answer(self) -> float:
        """On average; 0 where none has ended."""
        return self.output_tokens / self.answers if self.answers else 0.0


@dataclass(slots=True)
class _Slice:
    begins_s: float
    requests: int = 0
    prompt_tokens: int = 0
    answers: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class DemandWindow:
    """Counts in slices of a few seconds, of which those of the last minute are kept."""

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._slices: deque[_Slice] = deque()

    def arrived(self, prompt_tokens: int, now_s: float) -> None:
        """A request came."""
        one = self._slice(now_s)
        one.requests += 1
        one.prompt_tokens += prompt_tokens

    def answered(self, cached_tokens: int, output_tokens: int, now_s: float) -> None:
        """A request's answer is whole."""
        one = self._slice(now_s)
        one.answers += 1
        one.cached_tokens += cached_tokens
        one.output_tokens += output_tokens

    def demand(self, now_s: float) -> Demand:
        """Of the last minute, or since the window was made."""
        self._forget(now_s)
        slices = self._slices
        return Demand(
            seconds=min(now_s - self._since_s, WINDOW_S),
            requests=sum(one.requests for one in slices),
            prompt_tokens=sum(one.prompt_tokens for one in slices),
            answers=sum(one.answers for one in slices),
            cached_tokens=sum(one.cached_tokens for one in slices),
            output_tokens=sum(one.output_tokens for one in slices),
        )

    def _slice(self, now_s: float) -> _Slice:
        if not self._slices or now_s >= self._slices[-1].begins_s + _SLICE_S:
            self._forget(now_s)
            self._slices.append(_Slice(now_s))
        return self._slices[-1]

    def _forget(self, now_s: float) -> None:
        while self._slices and self._slices[0].begins_s <= now_s - WINDOW_S:
            self._slices.popleft()
