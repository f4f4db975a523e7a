"""Who gives blocks up when they are short: less urgent sequences are parked, and at a standstill the last by rank.

Knows who waits for blocks and who has some; not how a parked sequence comes back.
"""

from collections.abc import Callable

from forebay.errors import RETRY_AFTER_S, KvExhaustedError
from forebay.worker.block_supply import BlockSupply
from forebay.worker.kv_rights import KvRights
from forebay.worker.residents import Residents
from forebay.worker.running_sequence import RunningSequence
from forebay.worker.standstill import Standstill


class Shortage:
    """Invariant: while one is on its way out, no other is sent: what it holds takes a moment to come back."""

    def __init__(
        self,
        residents: Residents,
        rights: KvRights,
        supply: BlockSupply,
        stuck_s: float,
        clock: Callable[[], float],
    ) -> None:
        """stuck_s: seconds in which nobody gets on, until the last by rank gives way."""
        self._residents = residents
        self._rights = rights
        self._supply = supply
        self._standstill = Standstill(stuck_s)
        self._clock = clock

    def note_stuck(self, stuck: frozenset[str]) -> None:
        """The sequences without room when none of the engine's has any; none when a step was computed."""
        self._standstill.note(stuck, self._clock())

    def relieve_other(self, priority: int) -> None:
        """Another worker of the node was refused blocks for something so urgent: one less urgent is parked for it."""
        self._supply.note_shortage(priority)
        if not self._residents.is_anyone_parking:
            self._park_less_urgent(priority)

    def relieve(self) -> None:
        """Somebody here was refused blocks: one less urgent is parked for it.

        When nobody gets on any more, the last is parked; with all blocks its own, it fails: the node is too small.
        """
        if self._residents.is_anyone_parking:
            return
        first = self._supply.first_waiting
        if first is not None and self._park_less_urgent(first.priority):
            return
        staying = self._residents.staying
        ids = {place: one.sequence_id for place, one in staying.items()}
        last = self._standstill.who_gives_way(ids, self._supply.is_waiting, self._clock())
        if last is None:
            return
        running = next(one for one in staying.values() if one.sequence_id == last)
        if running.table_blocks < self._rights.device_block_count:
            self._park(running)
            return
        exhausted = KvExhaustedError(
            "the sequence has all KV blocks of this node and needs more; lower max_tokens, or raise --device-bytes"
            " of the KV-cache service",
            retry_after_s=RETRY_AFTER_S,
        )
        self._residents.abort(running, exhausted)

    def _park_less_urgent(self, priority: int) -> bool:
        """Whether there was one: the last by rank leaves the engine."""
        less_urgent = {place: one for place, one in self._residents.staying.items() if one.spec.priority > priority}
        if less_urgent:
            self._park(less_urgent[max(less_urgent)])
        return bool(less_urgent)

    def _park(self, running: RunningSequence) -> None:
        """Takes a sequence out of the engine, and lets it come back when there are blocks for it again."""
        running.is_parking = True
        self._residents.take_out(running)
