"""One sequence on a worker: what was asked, how far it is, and what it cost. Changed on the event loop only."""

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from dataclasses import dataclass, field

from forebay.engine.rank import Rank
from forebay.engine.scheduler import FinishReason
from forebay.engine.step_totals import MeasuredStep, StepTotals
from forebay.engine.types import SamplingParams, TokenLogprobs
from forebay.errors import ForebayError
from forebay.kv.hashing import HashChain
from forebay.v1 import common_pb2
from forebay.worker.bringing import Transfer
from forebay.worker.departure import Progress
from forebay.worker.pauses import Pauses

TokenSink = Callable[[int, TokenLogprobs | None], None]
"""Takes each new token, on the event loop, in order; must not block."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A sequence that another worker handed over: its KV is written for token_count positions.

    is_left_behind: it was not handed over; the worker was lost, and has written and sealed more perhaps.
    """

    epoch: int
    token_count: int
    is_left_behind: bool = False


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """What to generate.

    hash_root: parent hash of the first block. offer: where the KV lies already on this node; source: where on another,
    from which its blocks are brought. With neither, and where blocks do not come: compute what the cache lacks.
    seals_as_filled: whether blocks are sealed one by one, instead of all at the end by `hand_over`. is_alone: whether
    the worker takes nothing else meanwhile.
    """

    sequence_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    hash_root: bytes
    emitted_token_ids: list[int] = field(default_factory=list)
    priority: int = 0
    tenant: str = ""
    offer: Offer | None = None
    source: common_pb2.Manifest | None = None
    seals_as_filled: bool = True
    is_alone: bool = False

    @property
    def known_token_ids(self) -> list[int]:
        """Prompt and emitted tokens."""
        return self.prompt_token_ids + self.emitted_token_ids

    @property
    def first_decode_position(self) -> int:
        """Positions before this one are computed before the first new token is sampled, those from it on one by one."""
        return len(self.prompt_token_ids) + max(len(self.emitted_token_ids), 1) - 1


@dataclass(slots=True)
class SequenceCost:
    """What a sequence took, as far as it has come. Tokens are positions whose KV was found or computed."""

    opened_s: float
    first_step_s: float | None = None
    cached_prompt_tokens: int = 0
    computed_prompt_tokens: int = 0
    chunks: int = 0
    prefill_s: float = 0.0
    decode_steps: int = 0
    parks: int = 0  # how often it gave its blocks up for more urgent ones
    first_decode_s: float | None = None
    last_decode_s: float = 0.0
    pauses: Pauses = field(default_factory=Pauses)
    transfer_s: float = 0.0
    transfer_bytes: int = 0
    prefill_totals: StepTotals = field(default_factory=StepTotals)
    decode_totals: StepTotals = field(default_factory=StepTotals)

    def note_transfer(self, transfer: Transfer) -> None:
        """Its KV came from elsewhere."""
        self.transfer_s, self.transfer_bytes = transfer.seconds, transfer.byte_count

    @property
    def queue_s(self) -> float:
        """Seconds from the start to the first step; 0 while there was none."""
        return 0.0 if self.first_step_s is None else self.first_step_s - self.opened_s

    @property
    def decode_s(self) -> float:
        """Seconds from the beginning of the first decode step to the end of the last."""
        return 0.0 if self.first_decode_s is None else self.last_decode_s - self.first_decode_s

    def note_measured(self, is_decode_step: bool, step: MeasuredStep | None) -> None:
        """Counts what a step it took part in cost and took as a whole, whoever else was in it."""
        if step is None:
            return
        if is_decode_step:
            self.decode_totals = self.decode_totals.plus(step)
        else:
            self.prefill_totals = self.prefill_totals.plus(step)


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step of a worker: its number, counted from the worker's start, and when it ran, in seconds."""

    number: int
    began_s: float
    ended_s: float


@dataclass(slots=True, eq=False)
class RunningSequence:
    """State of one sequence between its start and the moment its rights are given up.

    Invariants: while is_in_engine the engine may write to its blocks, so they are kept; `end` is resolved once.
    """

    spec: SequenceSpec
    on_token: TokenSink
    chain: HashChain
    cost: SequenceCost
    end: "asyncio.Future[FinishReason]"
    new_token_ids: list[int] = field(default_factory=list)
    written_tokens: int = 0  # positions whose KV is found or computed
    last_step: StepTime | None = None  # that computed some of it
    table_blocks: int = 0
    found_blocks: int = 0  # sealed from the first
    place: Rank | None = None
    is_in_engine: bool = False
    is_cancel_sent: bool = False
    is_parking: bool = False  # on its way out of the engine, to come back later
    is_closed: bool = False
    is_moving: bool = False  # out of the engine, and on to another worker
    extension: "asyncio.Task[None] | None" = None
    coming_back: "asyncio.Task[None] | None" = None  # of a parked one
    context: Context = field(default_factory=copy_context)  # of whoever opened it: what is done for it is in its trace

    @property
    def sequence_id(self) -> str:
        """Its id."""
        return self.spec.sequence_id

    async def ended(self) -> FinishReason:
        """Waits for its natural end. Raises what it failed with."""
        return await self.end

    def finish(self, reason: FinishReason) -> None:
        """It ended by itself."""
        if not self.end.done():
            self.end.set_result(reason)

    def fail(self, error: ForebayError) -> None:
        """It cannot go on."""
        if not self.end.done():
            self.end.set_exception(error)

    def take(self, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """Passes a new token on."""
        self.new_token_ids.append(token_id)
        self.chain.extend((token_id,))
        if not self.end.done():
            self.on_token(token_id, logprobs)

    @property
    def progress(self) -> Progress:
        """How far it is."""
        answer_tokens = len(self.spec.emitted_token_ids) + len(self.new_token_ids)
        return Progress(len(self.spec.prompt_token_ids), answer_tokens, self.written_tokens)

    @property
    def pending_tokens(self) -> int:
        """Positions still to be computed before it generates; what was computed elsewhere is none of them."""
        spec = self.spec
        elsewhere = spec.offer.token_count if spec.offer else spec.source.token_count if spec.source else 0
        known_tokens = len(spec.prompt_token_ids) + len(spec.emitted_token_ids)
        return max(0, known_tokens - max(self.written_tokens, elsewhere))

    def note_step(self, first_position: int, token_count: int, step: StepTime) -> float | None:
        """Counts a step that computed token_count positions of it. Returns seconds of the pause it ended, if it did."""
        self.written_tokens = first_position + token_count
        cost, prompt_tokens = self.cost, len(self.spec.prompt_token_ids)
        if cost.first_step_s is None:
            cost.first_step_s = step.began_s
        last, self.last_step = self.last_step, step
        paused_s = None if last is None or step.number == last.number + 1 else step.began_s - last.ended_s
        if paused_s is not None:
            cost.pauses.add(paused_s)
        if first_position >= self.spec.first_decode_position:
            cost.decode_steps += 1
            cost.first_decode_s = step.began_s if cost.first_decode_s is None else cost.first_decode_s
            cost.last_decode_s = step.ended_s
            return paused_s
        cost.chunks += 1
        cost.prefill_s += step.ended_s - step.began_s
        cost.computed_prompt_tokens += max(0, min(first_position + token_count, prompt_tokens) - first_position)
        return paused_s
