"""Who computes what in a round, one after the other, and what came of it. Judges nothing."""

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from forebay.engine.types import SamplingParams
from scripts.benchmarks.generation import Contestant, ContestantAbsentError, Generation, Workload
from scripts.benchmarks.report import median

STEPS = 128
DECODE = (
    Workload(1, 32, STEPS),
    Workload(1, 1024, STEPS),
    Workload(4, 32, STEPS),
    Workload(16, 32, STEPS),
    Workload(16, 1024, STEPS),
)
PREFILL = (Workload(1, 1024), Workload(1, 4096))
DRAWN_WORKLOAD = DECODE[3]
_WARM_UP = (Workload(1, 32, 8), Workload(16, 32, 8))

OURS, TORCH = "forebay", "forebay on torch"
DRAWN: Mapping[str, SamplingParams] = {
    "T=1": SamplingParams(max_tokens=STEPS, seed=1),
    "top_p 0.9": SamplingParams(max_tokens=STEPS, seed=1, top_p=0.9),
    "T=0.7, top_p 0.9": SamplingParams(max_tokens=STEPS, seed=1, temperature=0.7, top_p=0.9),
    "T=0.7, top_k 40": SamplingParams(max_tokens=STEPS, seed=1, temperature=0.7, top_k=40),
}
"""Ways to draw in which ours computes one workload too, by the contestant's name."""
_LEFT_OUT: Mapping[str, tuple[Workload, ...]] = {
    TORCH: (DECODE[2], DECODE[4], PREFILL[1]),
    # 16 prompts of 1,024 tokens take them a minute, and nothing is compared with what follows.
    "llama.cpp": (DECODE[4], PREFILL[1]),
    "vLLM-CPU": (DECODE[4], PREFILL[1]),
    **{name: tuple(one for one in (*DECODE, *PREFILL) if one != DRAWN_WORKLOAD) for name in DRAWN},
}


class EngineRounds:
    """Generations by contestant and workload, one of each round; None where there is none."""

    def __init__(self, contestants: Mapping[str, Contestant], absent: Mapping[str, str]) -> None:
        """Args: absent: why those that were wanted and are not there are not there, by name."""
        self.absent = dict(absent)
        self._contestants = dict(contestants)
        self._names = [*contestants, *absent]
        self._generations: dict[tuple[str, Workload], list[Generation | None]] = defaultdict(list)
        self._numbers = random.Random(0)

    @property
    def others(self) -> list[str]:
        """Whom ours is compared with, absent ones too."""
        return [name for name in self._names if name != OURS and name not in DRAWN]

    def warm_up(self) -> None:
        """Every contestant computes a little, unmeasured."""
        for workload in _WARM_UP:
            prompts = workload.prompts(self._numbers)
            for name in list(self._contestants):
                self._generate(name, prompts, workload.steps)

    def run_round(self) -> None:
        """Each workload in turn, with the same prompts, by each contestant: the machine's drift meets them alike."""
        for workload in (*DECODE, *PREFILL):
            prompts = workload.prompts(self._numbers)
            for name in self._names:
                if self.computes(name, workload):
                    self._generations[name, workload].append(self._generate(name, prompts, workload.steps))

    def computes(self, name: str, workload: Workload) -> bool:
        """Whether the contestant is asked for that workload."""
        return workload not in _LEFT_OUT.get(name, ())

    def generations(self, name: str, workload: Workload) -> list[Generation]:
        """Those that there are."""
        return [one for one in self._generations[name, workload] if one is not None]

    def median_of(self, name: str, workload: Workload, number: Callable[[Generation], float]) -> float | None:
        """The median over the rounds; None when there is none."""
        generations = self.generations(name, workload)
        return median([number(one) for one in generations]) if generations else None

    def ratio(
        self, ours: tuple[str, Workload], theirs: tuple[str, Workload], number: Callable[[Generation], float]
    ) -> float | None:
        """The median of the quotients of each round that has both; None when there is none."""
        pairs: Sequence[tuple[Generation | None, Generation | None]] = list(
            zip(self._generations[ours], self._generations[theirs], strict=False)
        )
        quotients = [number(one) / number(other) for one, other in pairs if one is not None and other is not None]
        return median(quotients) if quotients else None

    def agreement(self, name: str) -> float | None:
        """The share of all prompts whose first token is the one that our engine gives."""
        pairs = [
            (ours, theirs)
            for workload in (*DECODE, *PREFILL)
            for one, other in zip(self._generations[OURS, workload], self._generations[name, workload], strict=False)
            if one is not None and other is not None
            for ours, theirs in zip(one.first_token_ids, other.first_token_ids, strict=True)
        ]
        return sum(ours == theirs for ours, theirs in pairs) / len(pairs) if pairs else None

    def _generate(self, name: str, prompts: list[list[int]], steps: int) -> Generation | None:
        if name not in self._contestants:
            return None
        try:
            return self._contestants[name].generate(prompts, steps)
        except ContestantAbsentError as error:
            self.absent[name] = str(error)
            del self._contestants[name]
            return None
