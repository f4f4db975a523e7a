"""Runs sequences on this worker: place, blocks, engine, seals, release. What a servicer calls.

Joins the KV rights (asynchronous, over the network) with the engine's thread (which knows neither). Lives on one event
loop, so that nothing here needs a lock; it never waits for the engine.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from forebay.engine.rank import Rank
from forebay.engine.scheduler import (
    BlocksFilled,
    Failed,
    Finished,
    Limits,
    NeedsBlocks,
    NewToken,
    Outcome,
)
from forebay.engine.types import Engine, Sequence
from forebay.errors import (
    RETRY_AFTER_S,
    DuplicateRequestError,
    ForebayError,
    IsolatedError,
)
from forebay.kv.hashing import HashChain
from forebay.worker.attachment import Attachment
from forebay.worker.block_supply import BlockSupply, Patience
from forebay.worker.engine_thread import DropEngine, EngineThread, MoreBlocks, UseEngine, internal
from forebay.worker.kv_rights import KvRights, lost
from forebay.worker.migration import Migration, draining
from forebay.worker.pauses import Pauses
from forebay.worker.places import Places
from forebay.worker.residents import Residents
from forebay.worker.running_sequence import RunningSequence, SequenceCost, SequenceSpec, StepTime, TokenSink
from forebay.worker.sequence_preparation import Preparation
from forebay.worker.shortage import Shortage
from forebay.worker.step_report import Report

_log = logging.getLogger(__name__)


class SequenceRunner:
    """All sequences of one worker, by id. Also the listener of its KV link."""

    def __init__(
        self,
        limits: Limits,
        patience: Patience,
        make_engine: Callable[[Attachment], Engine],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.is_draining = False
        self._is_connected = False
        self._patience = patience
        self._make_engine = make_engine
        self._clock = clock
        # So many sequences of less urgent tiers may be paused, and keep their blocks, as there are places in the batch.
        self._places = Places(limits.max_sequences, patience.queue_length, pushed_out_at_most=limits.max_sequences)
        self._sequences: dict[str, RunningSequence] = {}
        self._step_count = 0
        self.pauses = Pauses()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._on_change: Callable[[], None] = lambda: None
        self._on_due: list[Callable[[], None]] = []

    def connect(self, rights: KvRights, thread: EngineThread, on_broken: Callable[[], None] = lambda: None) -> None:
        """Joins both halves. To be called once, on the loop, before the first sequence.

        on_broken: called when the engine's thread has ended by itself and all sequences have failed.
        """
        self._rights = rights
        self._thread = thread
        self._residents = Residents(self._sequences, rights, thread, self.limits.context_tokens)
        self._migration = Migration(self._sequences, self._residents, rights, self.limits.block_tokens)
        self._supply = BlockSupply(rights, self._patience, self.limits.block_tokens, self._relieve)
        self._shortage = Shortage(self._residents, rights, self._supply, self._patience.stuck_s, self._clock)
        self._preparation = Preparation(self.limits, rights, self._supply, self._places, self._clock, self._tell_change)
        self._is_connected = True

        def break_down() -> None:
            self._fail_all()
            on_broken()

        thread.start(self._on_report, self._tell_due, break_down)

    @property
    def sequences(self) -> list[RunningSequence]:
        """All sequences that hold something, waiting ones included."""
        return list(self._sequences.values())

    @property
    def running_count(self) -> int:
        """Sequences in the batch."""
        return self._places.running_count

    @property
    def queued_count(self) -> int:
        """Sequences before it, paused ones included."""
        return self._places.queued_count

    @property
    def is_broken(self) -> bool:
        """Whether the engine's thread has ended: nothing can run any more."""
        return self._is_connected and self._residents.is_broken

    @property
    def is_isolated(self) -> bool:
        """Whether a sequence has the worker to itself."""
        return any(one.spec.is_alone for one in self._sequences.values())

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` on the loop whenever sequences came, went or got on."""
        self._on_change = listener

    @contextmanager
    def telling_due(self, listener: Callable[[], None]) -> Iterator[None]:
        """While the block runs, calls `listener` on the loop when tokens that were gathered should be passed on."""
        self._on_due.append(listener)
        try:
            yield
        finally:
            self._on_due.remove(listener)

    def move_on(self) -> None:
        """From now on a sequence that another worker can go on with is handed over, and fails with MovedOnError here.

        Others do as soon as they have a token, and end here if they end before. For a worker that drains.
        """
        self._migration.begin()

    async def wait_idle(self) -> None:
        """Until no sequence holds anything."""
        await self._is_idle.wait()

    @asynccontextmanager
    async def open(self, spec: SequenceSpec, on_token: TokenSink) -> AsyncIterator[RunningSequence]:
        """Gets a place and blocks for a sequence and computes it while the block runs; at its exit all is given up.

        Leaving early cancels the sequence. Raises DrainingError, DuplicateRequestError, IsolatedError, QueueFullError
        and KvExhaustedError; WorkerLostError; ForebayError itself when the worker is broken.
        """
        # What others computed is not refused: it would be computed again.
        if self.is_draining and spec.offer is None:
            raise draining()
        if spec.sequence_id in self._sequences:
            if spec.offer is not None and spec.offer.is_left_behind:
                raise lost()  # it was left by this very worker, whose connection was lost, and which is still ending it
            raise DuplicateRequestError("a request with this id is running", field="request_id")
        self._check_company(spec)
        running = self._register(spec, on_token)
        try:
            sequence = await self._preparation.first(running)
            self._enter_engine(running, sequence)
            yield running
        finally:
            self._close(running)

    def _check_company(self, spec: SequenceSpec) -> None:
        """What may take the worker down with it runs alone. Raises IsolatedError, and neither waits for the other."""
        if self.is_isolated:
            message = "a request of the BACKUP tier has this worker to itself"
        elif spec.is_alone and self._sequences:
            message = f"a request of the BACKUP tier needs a worker to itself, and this one runs {len(self._sequences)}"
        else:
            return
        raise IsolatedError(message, retry_after_s=RETRY_AFTER_S)

    async def hand_over(self, running: RunningSequence) -> tuple[int, list[bytes]]:
        """Seals the full blocks of a sequence that has ended and offers it to its next owner.

        Returns the epoch of the offer and the hashes of all sealed blocks. Until `give_away` it is released at exit.
        """
        hashes = self._prompt_hashes(running)
        # Those that were sealed as they filled are named again: nobody has waited for their answers.
        epoch = await self._rights.hand_over(running.sequence_id, running.found_blocks, hashes[running.found_blocks :])
        return epoch, hashes

    def keep(self, running: RunningSequence) -> None:
        """Leaves the prompt's full blocks to the cache: of a sequence that has ended, and that nobody goes on with."""
        if not running.spec.seals_as_filled:
            hashes = self._prompt_hashes(running)[running.found_blocks :]
            self._rights.seal(running.sequence_id, running.found_blocks, hashes, at_once=False)

    def give_away(self, running: RunningSequence) -> None:
        """The offer has reached whoever is to pass it on: it is not released here."""
        self._rights.give_away(running.sequence_id)

    def decline(self, sequence_id: str, epoch: int) -> None:
        """An offer to this worker will not be used. Harmless when it was taken."""
        self._rights.decline(sequence_id, epoch)

    def epoch_of(self, sequence_id: str) -> int:
        """With which another worker takes a sequence over if this one is lost; 0: it is not this worker's any more."""
        return self._rights.epoch_of(sequence_id)

    def on_attached(self, attachment: Attachment) -> None:
        """Goes on over the service's new memory."""
        self._thread.submit(UseEngine(self._make_engine(attachment)))

    def on_detached(self) -> None:
        """Gives the memory up: a service that follows a killed one may need its room."""
        if self._is_connected:
            self._thread.submit(DropEngine())

    def on_short(self, priority: int) -> None:
        """Another worker of the node waits for blocks, for something so urgent."""
        if self._is_connected:  # else nothing is here yet that could be parked
            self._shortage.relieve_other(priority)

    def on_lost(self, sequence_ids: frozenset[str]) -> None:
        """Stops these before the next step."""
        for sequence_id in sequence_ids:
            running = self._sequences.get(sequence_id)
            if running is not None:
                self._residents.abort(running, lost())

    def _register(self, spec: SequenceSpec, on_token: TokenSink) -> RunningSequence:
        end = asyncio.get_running_loop().create_future()
        end.add_done_callback(lambda done: done.cancelled() or done.exception())  # not an error if nobody asks
        running = RunningSequence(
            spec=spec,
            on_token=on_token,
            chain=HashChain(spec.hash_root, self.limits.block_tokens),
            cost=SequenceCost(opened_s=self._clock()),
            end=end,
        )
        self._sequences[spec.sequence_id] = running
        self._is_idle.clear()
        self._on_change()
        return running

    def _prompt_hashes(self, running: RunningSequence) -> list[bytes]:
        """Of the prompt's full blocks."""
        return running.chain.hashes[: len(running.spec.prompt_token_ids) // self.limits.block_tokens]

    def _enter_engine(self, running: RunningSequence, sequence: Sequence) -> None:
        self._residents.enter(running, sequence)
        self._migration.move_what_can()

    def _on_report(self, report: Report) -> None:
        """Takes in one step's news; runs on the loop."""
        self._step_count += bool(report.shares)
        step = StepTime(self._step_count, report.began_s, report.ended_s)
        for share in report.shares:
            running = self._sequences.get(share.sequence_id)
            if running is not None:
                paused_s = running.note_step(share.first_position, share.token_count, step)
                if paused_s is not None:
                    self.pauses.add(paused_s)
                running.cost.note_measured(share.first_position >= running.spec.first_decode_position, report.measured)
        for outcome in report.outcomes:
            running = self._sequences.get(outcome.sequence_id)
            if running is not None:
                self._take_in(running, outcome)
        for sequence_id in report.removed:
            running = self._sequences.get(sequence_id)
            if running is not None:
                self._leave_engine(running)
        self._shortage.note_stuck(report.stuck)
        self._migration.move_what_can()

    def _fail_all(self) -> None:
        """The engine's thread is no more: nothing writes to any block, and no command is answered."""
        self._residents.is_broken = True
        for running in self.sequences:
            running.fail(internal())
            if running.is_in_engine:
                self._leave_engine(running)

    def _relieve(self) -> None:
        self._shortage.relieve()

    def _tell_change(self) -> None:
        self._on_change()

    def _tell_due(self) -> None:
        self._on_change()
        for listener in self._on_due:
            listener()

    def _take_in(self, running: RunningSequence, outcome: Outcome) -> None:
        match outcome:
            case NewToken():
                running.take(outcome.token_id, outcome.logprobs)
            case BlocksFilled() if running.spec.seals_as_filled:
                end = outcome.first_index + outcome.block_count
                hashes = running.chain.hashes[outcome.first_index : end]
                is_prompt = end * self.limits.block_tokens <= len(running.spec.prompt_token_ids)
                self._rights.seal(running.sequence_id, outcome.first_index, hashes, at_once=is_prompt)
            case NeedsBlocks() if running.place is not None and not (running.is_closed or running.is_parking):
                extending = self._extend(running, running.place, outcome.block_count)
                running.extension = asyncio.create_task(extending, context=running.context)
            case Finished():
                running.finish(outcome.reason)
                self._leave_by_itself(running)
            case Failed():
                running.fail(outcome.error)
                self._leave_by_itself(running)

    async def _extend(self, running: RunningSequence, place: Rank, block_count: int) -> None:
        """Gets further blocks, however long that takes while the sequence lives."""
        try:
            grant = await self._supply.extend(running.sequence_id, place, block_count)
        except ForebayError as error:
            self._residents.abort(running, error)
            return
        self._thread.submit(MoreBlocks(running.sequence_id, grant.block_ids[running.table_blocks :]))
        running.table_blocks = len(grant.block_ids)

    def _begin_again(self, running: RunningSequence) -> None:
        """It has left the engine: what it holds is given back, and it stands in line where it stood before."""
        running.is_parking = running.is_cancel_sent = False
        if self._migration.has_begun:
            running.fail(draining())  # its full blocks are found by whoever goes on
            return
        place, running.place = running.place, None
        if place is None or running.end.done():
            running.place = place
            return
        if running.extension is not None:
            running.extension.cancel()
        if not running.spec.seals_as_filled:
            full_blocks = running.written_tokens // self.limits.block_tokens
            hashes = running.chain.hashes[running.found_blocks : full_blocks]
            self._rights.seal(running.sequence_id, running.found_blocks, hashes, at_once=False)
        running.cost.parks += 1
        self._places.leave(place)
        running.coming_back = asyncio.create_task(self._come_back(running, place), context=running.context)

    async def _come_back(self, running: RunningSequence, place: Rank) -> None:
        try:
            self._enter_engine(running, await self._preparation.again(running, place))
        except ForebayError as error:
            running.fail(error)
        except Exception:
            _log.exception("a parked sequence cannot come back")
            running.fail(internal())

    def _leave_by_itself(self, running: RunningSequence) -> None:
        # A Cancel under way is answered in Report.removed; until then another sequence of this id must not begin.
        if not running.is_cancel_sent:
            self._leave_engine(running)

    def _leave_engine(self, running: RunningSequence) -> None:
        """Nothing writes to its blocks any more."""
        running.is_in_engine = False
        if running.is_closed:
            self._give_up(running)
        elif running.is_moving and not running.end.done():
            self._migration.hand_on(running)
        elif running.is_parking:
            self._begin_again(running)

    def _close(self, running: RunningSequence) -> None:
        """Its user is gone: everything it holds is given up as soon as the engine has let go of it."""
        running.is_closed = True
        running.end.cancel()
        for task in (running.extension, running.coming_back):
            if task is not None:
                task.cancel()
        self._residents.take_out(running)
        if not running.is_in_engine:
            self._give_up(running)

    def _give_up(self, running: RunningSequence) -> None:
        del self._sequences[running.sequence_id]
        self._rights.release(running.sequence_id)
        if running.place is not None:
            self._places.leave(running.place)
        if not self._sequences:
            self._is_idle.set()
        self._on_change()
