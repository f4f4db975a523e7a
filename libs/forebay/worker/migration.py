"""How the sequences of a worker that drains move on to another of its node, with their KV."""

import asyncio
from collections.abc import Mapping

from forebay.errors import RETRY_AFTER_S, DrainingError, ForebayError
from forebay.tasks import end_task
from forebay.worker.departure import blocks_to_seal, can_be_taken_over
from forebay.worker.kv_rights import KvRights
from forebay.worker.moved_on import MovedOnError
from forebay.worker.residents import Residents
from forebay.worker.running_sequence import RunningSequence


class Migration:
    """Nothing moves until `begin`; from then on each sequence does as soon as another worker can go on with it."""

    def __init__(
        self, sequences: Mapping[str, RunningSequence], residents: Residents, rights: KvRights, block_tokens: int
    ) -> None:
        self.has_begun = False
        self._sequences = sequences
        self._residents = residents
        self._rights = rights
        self._block_tokens = block_tokens

    def begin(self) -> None:
        """From now on. Those that are parked end at once: their full blocks are found by whoever goes on."""
        self.has_begun = True
        for running in self._sequences.values():
            if running.coming_back is not None and not running.is_in_engine:
                running.fail(draining())
        self.move_what_can()

    def move_what_can(self) -> None:
        """Takes those out of the engine that can move now; `hand_on` is to follow when they have left it."""
        if not self.has_begun:
            return
        for running in self._sequences.values():
            is_at_work = running.is_in_engine and not running.is_cancel_sent and not running.end.done()
            if is_at_work and can_be_taken_over(running.progress):
                running.is_moving = True
                self._residents.take_out(running)

    def hand_on(self, running: RunningSequence) -> None:
        """Offers a sequence that nobody computes any more to whoever takes it over; it ends with MovedOnError."""
        if running.extension is not None:
            running.extension.cancel()
        handing_on = self._hand_on(running, running.extension)
        running.extension = asyncio.create_task(handing_on, context=running.context)

    async def _hand_on(self, running: RunningSequence, extension: "asyncio.Task[None] | None") -> None:
        if extension is not None:  # answered after the hand-over it would find the sequence lost
            await end_task(extension)
        end = blocks_to_seal(running.progress, self._block_tokens)
        hashes = running.chain.hashes[running.found_blocks : end]
        try:
            epoch = await self._rights.hand_over(running.sequence_id, running.found_blocks, hashes)
        except ForebayError:
            running.fail(draining())
            return
        self._rights.give_away(running.sequence_id)
        running.fail(MovedOnError(epoch))


def draining() -> DrainingError:
    """What a worker that drains says to whom it does not serve any more."""
    return DrainingError("the worker is draining", retry_after_s=RETRY_AFTER_S)
