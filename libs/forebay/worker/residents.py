"""The sequences in the engine: how they come in, and how they are taken out.

Knows the engine's thread, and whose blocks may be written. Decides nothing, and never waits for the engine.
"""

from collections.abc import Mapping

from forebay.engine.rank import Rank
from forebay.engine.scheduler import finish_reason
from forebay.engine.types import Sequence
from forebay.errors import ForebayError
from forebay.worker.engine_thread import Add, Cancel, EngineThread, internal
from forebay.worker.kv_rights import KvRights, lost
from forebay.worker.running_sequence import RunningSequence


class Residents:
    """A view of a worker's sequences, which are by id.

    Invariant: one that was taken out stays in the engine until the thread says that nothing writes to its blocks.
    """

    def __init__(
        self, sequences: Mapping[str, RunningSequence], rights: KvRights, thread: EngineThread, context_tokens: int
    ) -> None:
        self.is_broken = False  # the engine's thread has ended: nothing can run any more
        self._sequences = sequences
        self._rights = rights
        self._thread = thread
        self._context_tokens = context_tokens

    @property
    def staying(self) -> dict[Rank, RunningSequence]:
        """Those that are not on their way out, by rank."""
        return {
            one.place: one
            for one in self._sequences.values()
            if one.place is not None and one.is_in_engine and not one.is_cancel_sent
        }

    @property
    def is_anyone_parking(self) -> bool:
        """Whether one is on its way out, to come back later."""
        return any(one.is_parking for one in self._sequences.values())

    def enter(self, running: RunningSequence, sequence: Sequence) -> None:
        """It is computed from now on, unless it has ended. Raises WorkerLostError where its blocks were lost."""
        if self.is_broken:
            raise internal()
        if not self._rights.owns(running.sequence_id):
            raise lost()  # lost while it waited for a place
        reason = finish_reason(sequence, self._context_tokens)
        if reason is not None:
            running.finish(reason)
            return
        running.is_in_engine = True
        self._thread.submit(Add(sequence, running.spec.priority))

    def take_out(self, running: RunningSequence) -> None:
        """It leaves before its end. Idempotent."""
        if running.is_in_engine and not running.is_cancel_sent:
            running.is_cancel_sent = True
            self._thread.submit(Cancel(running.sequence_id))

    def abort(self, running: RunningSequence, error: ForebayError) -> None:
        """It leaves, and has failed."""
        self.take_out(running)
        running.fail(error)
