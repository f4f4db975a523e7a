"""Which tokens the next step computes: continuous batching with chunked prefill, the most urgent first.

Knows sequences, their block tables and how a generation ends. Pure: it plans and returns effects, and knows nothing of
tensors, clocks, or where blocks come from. One thread owns a scheduler.
"""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from forebay.engine.rank import Rank, rank_of
from forebay.engine.types import Sampled, Sequence, Slice, TokenLogprobs
from forebay.errors import DuplicateRequestError, ForebayError

DEFAULT_CHUNK_TOKENS = 256
DEFAULT_MAX_SEQUENCES = 32
DEFAULT_LOOKAHEAD_BLOCKS = 4
DEFAULT_STEP_SLO_S = 0.05


class FinishReason(Enum):
    """Why a generation ended by itself."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token was sampled; told once for each."""

    sequence_id: str
    token_id: int
    logprobs: TokenLogprobs | None


@dataclass(frozen=True, slots=True)
class BlocksFilled:
    """Blocks first_index .. first_index + block_count - 1 are full, written, and will not be written again."""

    sequence_id: str
    first_index: int
    block_count: int


@dataclass(frozen=True, slots=True)
class NeedsBlocks:
    """The sequence will soon run out of table; not told again until blocks are granted."""

    sequence_id: str
    block_count: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The sequence ended by itself and is forgotten."""

    sequence_id: str
    reason: FinishReason


@dataclass(frozen=True, slots=True)
class Failed:
    """The sequence cannot go on and is forgotten."""

    sequence_id: str
    error: ForebayError


Outcome = NewToken | BlocksFilled | NeedsBlocks | Finished | Failed


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds a step and a sequence.

    chunk_tokens: most prompt tokens of one step; max_sequences: most sequences in the batch; lookahead_blocks: how far
    ahead of its last token a table is lengthened; context_tokens: most tokens of prompt and output together;
    step_slo_s: seconds that a step with generating sequences should take at most.
    """

    block_tokens: int
    context_tokens: int
    chunk_tokens: int = DEFAULT_CHUNK_TOKENS
    max_sequences: int = DEFAULT_MAX_SEQUENCES
    lookahead_blocks: int = DEFAULT_LOOKAHEAD_BLOCKS
    step_slo_s: float = DEFAULT_STEP_SLO_S

    def most_written_tokens(self, sequence: Sequence) -> int:
        """How many positions can ever be written: all but the last token, whose KV nobody reads."""
        return min(len(sequence.prompt_token_ids) + sequence.sampling.max_tokens, self.context_tokens) - 1

    def table_blocks(self, sequence: Sequence, ahead_tokens: int) -> int:
        """Length of a table that holds the sequence and so many tokens more, but not more than it can ever write."""
        wanted_tokens = min(sequence.token_count + ahead_tokens, self.most_written_tokens(sequence))
        return -(-max(wanted_tokens, 1) // self.block_tokens)

    def first_table_blocks(self, sequence: Sequence) -> int:
        """Length of the table a sequence should begin with."""
        return self.table_blocks(sequence, self.lookahead_blocks * self.block_tokens)


@dataclass(slots=True, eq=False)
class _Entry:
    sequence: Sequence
    priority: int
    rank: Rank
    reported_blocks: int  # full blocks already told, or sealed by someone before us
    is_asking: bool = False  # NeedsBlocks is out and not yet answered


class Scheduler:
    """Decides steps over its sequences.

    The batch is made anew for each step: the first max_sequences, by rank, of those that can compute something. One
    that waits for its table holds no place in it; one that a more urgent one keeps out is paused: it keeps its blocks
    and what it has computed.

    Invariants: a slice never reaches beyond its sequence's table; at most max_sequences sequences are in the batch;
    computed_tokens only grows; every sampled token and every full block is told exactly once.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._arrivals = 0
        self._entries: dict[str, _Entry] = {}
        self._in_order: list[_Entry] = []  # the same, by rank

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._entries

    @property
    def sequence_ids(self) -> list[str]:
        """All sequences, by rank."""
        return [entry.sequence.sequence_id for entry in self._in_order]

    @property
    def is_decoding(self) -> bool:
        """Whether some sequence can generate its next token."""
        return any(entry.sequence.is_decoding and self._room_tokens(entry.sequence) > 0 for entry in self._in_order)

    def most_urgent(self, slices: list[Slice]) -> int:
        """The lowest priority number of a planned step."""
        return min(self._entries[part.sequence.sequence_id].priority for part in slices)

    def add(self, sequence: Sequence, priority: int = 0) -> list[Outcome]:
        """Takes a sequence in. Its first computed_tokens // block_tokens blocks count as sealed.

        priority: 0 is the most urgent; each step up may be overtaken by OVERTAKEN_AT_MOST later ones.
        Raises DuplicateRequestError if the id is here, ValueError if every token of it is computed already.
        """
        if sequence.sequence_id in self:
            raise DuplicateRequestError("a sequence with this id is running", field="request_id")
        if not 0 <= sequence.computed_tokens < sequence.token_count:
            raise ValueError("a sequence needs at least one token that is not computed yet")
        self._arrivals += 1
        entry = _Entry(
            sequence=sequence,
            priority=priority,
            rank=rank_of(self._arrivals, priority),
            reported_blocks=sequence.computed_tokens // self.limits.block_tokens,
        )
        self._entries[sequence.sequence_id] = entry
        insort(self._in_order, entry, key=lambda one: one.rank)
        return list(self._ask(entry))

    def cancel(self, sequence_id: str) -> bool:
        """Forgets a sequence at any moment, also between plan_step and complete. Returns whether it was here."""
        entry = self._entries.get(sequence_id)
        if entry is not None:
            self._forget(entry)
        return entry is not None

    def grant_blocks(self, sequence_id: str, block_ids: Iterable[int]) -> list[Outcome]:
        """Appends blocks to a sequence's table; ignored when it has ended."""
        entry = self._entries.get(sequence_id)
        if entry is None:
            return []
        entry.sequence.block_table.extend(block_ids)
        entry.is_asking = False
        return list(self._ask(entry))

    def plan_step(self, chunk_tokens: int | None = None) -> list[Slice]:
        """By rank: one token of each generating sequence, and of prompts as much as chunk_tokens together allow.

        Args: chunk_tokens: fewer prompt tokens in this step than the limit. A sequence without room in its table waits.
        Empty: nothing can run until blocks or sequences come.
        """
        most_tokens = self.limits.chunk_tokens
        left_tokens = most_tokens if chunk_tokens is None else min(chunk_tokens, most_tokens)
        decodes: list[Slice] = []
        prompts: list[Slice] = []
        for entry in self._in_order:
            if len(decodes) + len(prompts) == self.limits.max_sequences:
                break
            sequence = entry.sequence
            room_tokens = self._room_tokens(sequence)
            if sequence.is_decoding:
                if room_tokens > 0:
                    decodes.append(Slice(sequence, 1))
                continue
            token_count = min(sequence.pending_tokens, room_tokens, left_tokens)
            if token_count > 0:
                prompts.append(Slice(sequence, token_count))
                left_tokens -= token_count
        return decodes + prompts

    def complete(self, slices: list[Slice], sampled: list[Sampled]) -> list[Outcome]:
        """Takes in what a planned step computed. Sequences cancelled meanwhile are passed over."""
        by_id = {one.sequence_id: one for one in sampled}
        outcomes: list[Outcome] = []
        for part in slices:
            entry = self._entries.get(part.sequence.sequence_id)
            if entry is not None and entry.sequence is part.sequence:
                outcomes.extend(self._advance(entry, part, by_id.get(part.sequence.sequence_id)))
        return outcomes

    def fail(self, slices: list[Slice], error: ForebayError) -> list[Outcome]:
        """The step broke as a whole: its sequences end with this error."""
        outcomes: list[Outcome] = []
        for part in slices:
            entry = self._entries.get(part.sequence.sequence_id)
            if entry is not None and entry.sequence is part.sequence:
                self._forget(entry)
                outcomes.append(Failed(part.sequence.sequence_id, error))
        return outcomes

    def _advance(self, entry: _Entry, part: Slice, sampled: Sampled | None) -> Iterable[Outcome]:
        sequence = entry.sequence
        reaches_end = sequence.computed_tokens + part.token_count == sequence.token_count
        if sampled is not None and sampled.error is not None:
            self._forget(entry)
            yield Failed(sequence.sequence_id, sampled.error)
            return
        if reaches_end and (sampled is None or sampled.token_id is None):
            self._forget(entry)
            yield Failed(sequence.sequence_id, ForebayError("the engine gave no token"))
            return
        sequence.computed_tokens += part.token_count
        reason = None
        if reaches_end and sampled is not None and sampled.token_id is not None:
            sequence.output_token_ids.append(sampled.token_id)
            yield NewToken(sequence.sequence_id, sampled.token_id, sampled.logprobs)
            reason = finish_reason(sequence, self.limits.context_tokens)
        # The token just sampled is not among computed_tokens: its KV is written by the next step.
        full_blocks = sequence.computed_tokens // self.limits.block_tokens
        if full_blocks > entry.reported_blocks:
            yield BlocksFilled(sequence.sequence_id, entry.reported_blocks, full_blocks - entry.reported_blocks)
            entry.reported_blocks = full_blocks
        if reason is not None:
            self._forget(entry)
            yield Finished(sequence.sequence_id, reason)
            return
        yield from self._ask(entry)

    def _ask(self, entry: _Entry) -> Iterable[Outcome]:
        """Asks for blocks when less than one block is left ahead of the last token."""
        sequence, limits = entry.sequence, self.limits
        if entry.is_asking or len(sequence.block_table) >= limits.table_blocks(sequence, limits.block_tokens - 1):
            return
        entry.is_asking = True
        missing_blocks = limits.first_table_blocks(sequence) - len(sequence.block_table)
        yield NeedsBlocks(sequence.sequence_id, missing_blocks)

    def _room_tokens(self, sequence: Sequence) -> int:
        return len(sequence.block_table) * self.limits.block_tokens - sequence.computed_tokens

    def _forget(self, entry: _Entry) -> None:
        del self._entries[entry.sequence.sequence_id]
        self._in_order.remove(entry)


def finish_reason(sequence: Sequence, context_tokens: int) -> FinishReason | None:
    """Whether a sequence's tokens already end it: by the last one, max_tokens, or the end of the context."""
    output = sequence.output_token_ids
    if output and output[-1] in sequence.sampling.stop_token_ids:
        return FinishReason.STOP
    if len(output) >= sequence.sampling.max_tokens or sequence.token_count >= context_tokens:
        return FinishReason.LENGTH
    return None
