"""What passes between the scheduler, the engine and the services around them. Pure: no torch, no clock."""

from dataclasses import dataclass, field
from typing import Protocol

from forebay.engine.step_cost import ModelCost
from forebay.errors import ForebayError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen, after validation and defaults. Meanings and ranges: common.proto."""

    max_tokens: int
    seed: int  # token i of the output depends only on (seed, i, logits)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop_token_ids: frozenset[int] = frozenset()  # eos ids included unless ignore_eos was asked for
    logprobs: int | None = None  # None: none at all; 0: the chosen token's only


@dataclass(slots=True)
class Sequence:
    """One request in the engine. The scheduler owns and changes it; the engine only reads it.

    Invariants: computed_tokens <= len(prompt) + len(output); the block table covers the tokens that any step writes.
    """

    sequence_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    block_table: list[int]  # indexes into the arena's blocks, in order of position
    computed_tokens: int = 0  # KV is written for positions 0..computed_tokens-1
    output_token_ids: list[int] = field(default_factory=list)

    @property
    def token_count(self) -> int:
        """Prompt and output tokens together."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def pending_tokens(self) -> int:
        """Tokens whose KV is not computed yet, the last one among them."""
        return self.token_count - self.computed_tokens

    @property
    def is_decoding(self) -> bool:
        """Whether nothing but the last sampled token is still to be computed."""
        return bool(self.output_token_ids) and self.pending_tokens <= 1


@dataclass(frozen=True, slots=True)
class Slice:
    """One sequence's share of a step: tokens computed_tokens .. computed_tokens + token_count - 1.

    The engine samples a next token exactly when the slice reaches the sequence's last token.
    """

    sequence: Sequence
    token_count: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural log-probabilities at temperature 1, before penalties.

    Alternatives are (token_id, logprob), likeliest first.
    """

    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token chosen for one sequence, or why there is none."""

    sequence_id: str
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    error: ForebayError | None = None


class Engine(Protocol):
    """Computes steps. One thread calls it; it never sees the network."""

    @property
    def model_cost(self) -> ModelCost:
        """What its steps cost, as it keeps the weights."""
        ...

    def use_threads(self, threads: int) -> None:
        """So many cores from the next step on, >= 1. Changes the speed, never the bits."""
        ...

    def step(self, slices: list[Slice]) -> list[Sampled]:
        """Writes KV of every slice into the arena and samples where a slice reaches its sequence's end.

        A sequence with NaN or infinite logits gets an error and does not disturb the others.
        """
        ...
