"""What holds for the scheduler whatever comes, in whatever order."""

from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.engine.rank import OVERTAKEN_AT_MOST
from forebay.engine.scheduler import BlocksFilled, Failed, Finished, Limits, NeedsBlocks, NewToken, Outcome, Scheduler
from forebay.engine.types import Sampled, SamplingParams, Sequence, Slice

LIMITS = Limits(block_tokens=4, context_tokens=64, chunk_tokens=8, max_sequences=3)
STOP_TOKEN = 13


def token_of(sequence: Sequence) -> int:
    """A fake model: the next token depends only on the sequence itself."""
    return (sum(sequence.prompt_token_ids) * 7 + len(sequence.output_token_ids) * 5) % 41


def expected_output(sequence: Sequence) -> list[int]:
    """What the sequence must yield if it is never cancelled."""
    alone = Sequence(sequence.sequence_id, list(sequence.prompt_token_ids), sequence.sampling, [])
    while True:
        alone.output_token_ids.append(token_of(alone))
        if (
            alone.output_token_ids[-1] == STOP_TOKEN
            or len(alone.output_token_ids) == alone.sampling.max_tokens
            or alone.token_count >= LIMITS.context_tokens
        ):
            return alone.output_token_ids


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, grants, cancels and steps at random, and keeps its own books."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(LIMITS)
        self.sequences: dict[str, Sequence] = {}
        self.order: dict[str, tuple[int, int]] = {}
        self.live: set[str] = set()
        self.emitted: defaultdict[str, list[int]] = defaultdict(list)
        self.filled: defaultdict[str, list[int]] = defaultdict(list)
        self.asked: dict[str, int] = {}
        self.computed: Counter[str] = Counter()
        self.planned: list[Slice] | None = None

    def note(self, outcomes: list[Outcome]) -> None:
        for one in outcomes:
            assert one.sequence_id in self.live, "news of a sequence that has ended"
            match one:
                case NewToken():
                    self.emitted[one.sequence_id].append(one.token_id)
                case BlocksFilled():
                    self.filled[one.sequence_id] += range(one.first_index, one.first_index + one.block_count)
                case NeedsBlocks():
                    assert one.sequence_id not in self.asked, "asked again before it was answered"
                    assert one.block_count > 0
                    self.asked[one.sequence_id] = one.block_count
                case Finished() | Failed():
                    self.live.discard(one.sequence_id)
                    self.asked.pop(one.sequence_id, None)

    @rule(
        prompt=st.integers(1, 30),
        cached_blocks=st.integers(0, 3),
        max_tokens=st.integers(1, 40),
        blocks=st.integers(0, 9),
        priority=st.integers(0, 2),
    )
    def add(self, prompt: int, cached_blocks: int, max_tokens: int, blocks: int, priority: int) -> None:
        cached_blocks = min(cached_blocks, blocks, (prompt - 1) // LIMITS.block_tokens)
        sequence = Sequence(
            sequence_id=f"s{len(self.sequences)}",
            prompt_token_ids=list(range(len(self.sequences), len(self.sequences) + prompt)),
            sampling=SamplingParams(max_tokens=max_tokens, seed=0, stop_token_ids=frozenset({STOP_TOKEN})),
            block_table=list(range(blocks)),
            computed_tokens=cached_blocks * LIMITS.block_tokens,
        )
        self.sequences[sequence.sequence_id] = sequence
        arrival = len(self.sequences)
        self.order[sequence.sequence_id] = (arrival + priority * OVERTAKEN_AT_MOST, arrival)
        self.live.add(sequence.sequence_id)
        self.filled[sequence.sequence_id] = list(range(cached_blocks))
        self.note(self.scheduler.add(sequence, priority))

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def grant(self, data: st.DataObject) -> None:
        sequence_id = data.draw(st.sampled_from(sorted(self.asked)))
        self.note(self.scheduler.grant_blocks(sequence_id, range(self.asked.pop(sequence_id))))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sequence_id = data.draw(st.sampled_from(sorted(self.live)))
        assert self.scheduler.cancel(sequence_id)
        self.live.discard(sequence_id)
        self.asked.pop(sequence_id, None)

    def room_tokens(self, sequence_id: str) -> int:
        sequence = self.sequences[sequence_id]
        return len(sequence.block_table) * LIMITS.block_tokens - sequence.computed_tokens

    @precondition(lambda self: self.planned is None)
    @rule(chunk_tokens=st.none() | st.integers(1, 12))
    def plan(self, chunk_tokens: int | None = None) -> None:
        self.planned = self.scheduler.plan_step(chunk_tokens)
        ids = [part.sequence.sequence_id for part in self.planned]
        assert len(ids) == len(set(ids)) <= LIMITS.max_sequences
        assert set(ids) <= self.live
        prompt_tokens = 0
        for part in self.planned:
            sequence = part.sequence
            end = sequence.computed_tokens + part.token_count
            assert part.token_count > 0
            assert end <= sequence.token_count
            assert end <= len(sequence.block_table) * LIMITS.block_tokens, "beyond the block table"
            prompt_tokens += 0 if sequence.output_token_ids else part.token_count
        most_tokens = min(chunk_tokens or LIMITS.chunk_tokens, LIMITS.chunk_tokens)
        assert prompt_tokens <= most_tokens
        self.check_that_the_urgent_go_first(most_tokens)

    def check_that_the_urgent_go_first(self, most_tokens: int) -> None:
        """Who is left out has no room, or the step is full of those who come before it."""
        planned = {part.sequence.sequence_id: part for part in self.planned or []}
        for left_out in self.live - planned.keys():
            if self.room_tokens(left_out) <= 0:
                continue
            before = [part for one, part in planned.items() if self.order[one] < self.order[left_out]]
            prompt_tokens = sum(part.token_count for part in before if not part.sequence.is_decoding)
            is_chunk_full = not self.sequences[left_out].is_decoding and prompt_tokens == most_tokens
            assert len(before) == LIMITS.max_sequences or is_chunk_full

    @precondition(lambda self: self.planned is not None)
    @rule()
    def complete(self) -> None:
        slices, self.planned = self.planned or [], None
        sampled = [
            Sampled(part.sequence.sequence_id, token_of(part.sequence))
            for part in slices
            if part.sequence.computed_tokens + part.token_count == part.sequence.token_count
        ]
        self.note(self.scheduler.complete(slices, sampled))

    @invariant()
    def books_agree(self) -> None:
        assert set(self.scheduler.sequence_ids) == self.live
        for sequence_id, sequence in self.sequences.items():
            assert sequence.computed_tokens >= self.computed[sequence_id], "computed_tokens went back"
            self.computed[sequence_id] = sequence.computed_tokens
            assert self.emitted[sequence_id] == sequence.output_token_ids
            assert self.filled[sequence_id] == list(range(sequence.computed_tokens // LIMITS.block_tokens))

    def teardown(self) -> None:
        """No starvation: once blocks come whenever asked for, everything ends, with the tokens it has alone."""
        if self.planned is not None:
            self.complete()
        uncancelled = set(self.live)
        for _ in range(2000):
            if not self.live:
                break
            while self.asked:
                sequence_id, block_count = self.asked.popitem()
                self.note(self.scheduler.grant_blocks(sequence_id, range(block_count)))
            self.plan()
            assert self.planned, "sequences live and have blocks, but nothing runs"
            self.complete()
            self.books_agree()
        assert not self.live
        for sequence_id in uncancelled:
            assert self.emitted[sequence_id] == expected_output(self.sequences[sequence_id])


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


@given(
    prompt=st.integers(1, 40),
    output=st.integers(0, 20),
    max_tokens=st.integers(1, 60),
    lookahead_blocks=st.integers(1, 4),
)
def test_the_first_table_always_lets_the_prompt_be_computed(
    prompt: int, output: int, max_tokens: int, lookahead_blocks: int
) -> None:
    limits = Limits(block_tokens=4, context_tokens=64, lookahead_blocks=lookahead_blocks)
    sequence = Sequence(
        "s", [0] * prompt, SamplingParams(max_tokens=max_tokens + output, seed=0), [], output_token_ids=[1] * output
    )
    blocks = limits.first_table_blocks(sequence)
    assert blocks * 4 >= min(sequence.token_count, 63)
    assert (blocks - 1) * 4 < prompt + output + max_tokens


def sequence_of(name: str, prompt: int, max_tokens: int, blocks: int = 16) -> Sequence:
    return Sequence(name, [1] * prompt, SamplingParams(max_tokens=max_tokens, seed=0), list(range(blocks)))


def step(scheduler: Scheduler) -> dict[str, int]:
    """Computes one step; tokens of each sequence in it."""
    slices = scheduler.plan_step()
    reached = [part for part in slices if part.token_count == part.sequence.pending_tokens]
    shares = {part.sequence.sequence_id: part.token_count for part in slices}
    scheduler.complete(slices, [Sampled(part.sequence.sequence_id, 1) for part in reached])
    return shares


@settings(max_examples=40, deadline=None)
@given(
    patient=st.tuples(st.integers(1, 30), st.integers(1, 20)),
    priority=st.integers(0, 2),
    flood=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2)), min_size=1, max_size=7),
    arrivals_a_step=st.integers(1, 3),
)
def test_every_sequence_ends_within_bounded_steps_whatever_arrives(
    patient: tuple[int, int], priority: int, flood: list[tuple[int, int, int]], arrivals_a_step: int
) -> None:
    """While it does not advance, one of those before it does; and they are boundedly many."""
    scheduler = Scheduler(LIMITS)
    scheduler.add(sequence_of("patient", *patient), priority)
    overtaking = max(prompt + max_tokens for prompt, max_tokens, _ in flood) * OVERTAKEN_AT_MOST * priority
    number = 0
    for _ in range(overtaking + sum(patient)):
        for _ in range(arrivals_a_step):
            prompt, max_tokens, urgency = flood[number % len(flood)]
            scheduler.add(sequence_of(f"f{number}", prompt, max_tokens), urgency)
            number += 1
        step(scheduler)
        if "patient" not in scheduler:
            return
    raise AssertionError("it starved")


@settings(deadline=None)
@given(
    prompts=st.lists(st.integers(1, 40), min_size=2, max_size=LIMITS.max_sequences),
    chunk_tokens=st.integers(2, 16),
)
def test_equals_are_served_alike(prompts: list[int], chunk_tokens: int) -> None:
    """Prompts first-come, so that the first never wait for the later; then a token each in every step."""
    scheduler = Scheduler(Limits(block_tokens=4, context_tokens=400, chunk_tokens=chunk_tokens, max_sequences=3))
    sequences = {f"s{number}": sequence_of(f"s{number}", tokens, 300, 100) for number, tokens in enumerate(prompts)}
    for sequence in sequences.values():
        scheduler.add(sequence)
    ends: list[int] = []
    step_number = 0
    while len(ends) < len(prompts):
        step_number += 1
        decoding = [name for name, sequence in sequences.items() if sequence.is_decoding]
        shares = step(scheduler)
        assert all(shares[name] == 1 for name in decoding), "a prompt never keeps a generating sequence waiting"
        ends += [step_number] * (sum(sequence.is_decoding for sequence in sequences.values()) - len(ends))
    assert ends == [-(-sum(prompts[: place + 1]) // chunk_tokens) for place in range(len(prompts))]
    before = {name: len(sequence.output_token_ids) for name, sequence in sequences.items()}
    for _ in range(5):
        assert step(scheduler) == dict.fromkeys(sequences, 1)
    after = {name: len(sequence.output_token_ids) for name, sequence in sequences.items()}
    assert after == {name: count + 5 for name, count in before.items()}


@settings(deadline=None)
@given(
    running=st.integers(1, 3),
    urgent=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 8)), min_size=1, max_size=6),
    steps_before=st.integers(0, 12),
)
def test_a_pause_costs_nothing_but_time(running: int, urgent: list[tuple[int, int]], steps_before: int) -> None:
    """What is computed of a paused sequence is not computed again, and its tokens are those it has alone."""
    scheduler = Scheduler(LIMITS)
    sequences = [sequence_of(f"batch-{number}", 10, 20) for number in range(running)]
    for sequence in sequences:
        scheduler.add(sequence, priority=1)
    computed: Counter[str] = Counter()
    for _ in range(steps_before):
        computed.update(step(scheduler))
    for number, (prompt, max_tokens) in enumerate(urgent):
        scheduler.add(sequence_of(f"urgent-{number}", prompt, max_tokens))
    while len(scheduler):
        shares = step(scheduler)
        assert shares
        computed.update(shares)
    for sequence in sequences:
        assert sequence.output_token_ids == [1] * 20
        assert computed[sequence.sequence_id] == sequence.computed_tokens == 29
