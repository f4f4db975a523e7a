"""How a sequence gets its place and its blocks before the engine computes it: at first, and after it was parked.

Knows the KV rights and the places of the batch; not the engine.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from forebay.engine.rank import Rank
from forebay.engine.scheduler import Limits
from forebay.engine.types import Sequence
from forebay.errors import RETRY_AFTER_S, UnknownSequenceError, WorkerLostError
from forebay.kv.hashing import reusable_block_count
from forebay.worker.block_supply import BlockSupply, Wish
from forebay.worker.bringing import Bringing, Transfer
from forebay.worker.kv_rights import BlockGrant, KvRights
from forebay.worker.places import Places
from forebay.worker.running_sequence import Offer, RunningSequence

_log = logging.getLogger(__name__)


class Preparation:
    """`on_change` is called whenever a sequence gets on."""

    def __init__(
        self,
        limits: Limits,
        rights: KvRights,
        supply: BlockSupply,
        places: Places,
        clock: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self._limits = limits
        self._rights = rights
        self._supply = supply
        self._places = places
        self._clock = clock
        self._on_change = on_change

    async def first(self, running: RunningSequence) -> Sequence:
        """The sequence with the blocks it begins with."""
        spec = running.spec
        sequence = _sequence(running)
        running.chain.extend(spec.known_token_ids)
        wanted_blocks = self._limits.first_table_blocks(sequence)
        # Before waiting for a place: an offer that nobody takes runs out, and what is brought takes time.
        grant = await self._take_over(running, wanted_blocks)
        with self._bringing(running, sequence) as bringing:
            running.place = await self._places.enter(spec.priority)
            self._on_change()
            if spec.offer is not None and grant is not None:
                sequence.computed_tokens = spec.offer.token_count
                if spec.offer.is_left_behind:
                    self._seal_what_is_left(running, grant, spec.offer)
            else:
                if bringing is not None:
                    running.cost.note_transfer(await bringing.ended())
                grant = await self._supply.begin(self._wish(running, running.place, sequence))
                sequence.computed_tokens = grant.cached_block_count * self._limits.block_tokens
        running.cost.cached_prompt_tokens = min(sequence.computed_tokens, len(spec.prompt_token_ids))
        self._take(running, sequence, grant)
        return sequence

    async def again(self, running: RunningSequence, rank: Rank) -> Sequence:
        """A parked sequence, of what the node still holds of its prompt and all tokens so far.

        rank: of the place that it had.
        """
        await self._rights.park(running.sequence_id)
        await self._places.come_back(rank)
        running.place = rank
        sequence = _sequence(running)
        grant = await self._supply.begin(replace(self._wish(running, rank, sequence), has_begun=True))
        sequence.computed_tokens = grant.cached_block_count * self._limits.block_tokens
        self._take(running, sequence, grant)
        return sequence

    def _take(self, running: RunningSequence, sequence: Sequence, grant: BlockGrant) -> None:
        running.written_tokens = sequence.computed_tokens
        running.found_blocks = grant.cached_block_count
        running.table_blocks = len(grant.block_ids)
        sequence.block_table.extend(grant.block_ids)
        self._on_change()  # what was found need not be computed

    async def _take_over(self, running: RunningSequence, wanted_blocks: int) -> BlockGrant | None:
        """Blocks of the offer the sequence came with; None without one, or when it has run out."""
        spec, began_s = running.spec, self._clock()
        if spec.offer is None:
            return None
        try:
            grant = await self._supply.take_over(spec.sequence_id, spec.offer, wanted_blocks)
        except UnknownSequenceError:
            if spec.offer.is_left_behind:
                raise WorkerLostError("what a lost worker had left has run out", retry_after_s=RETRY_AFTER_S) from None
            _log.info("an offer ran out before it was taken; what is sealed of it is found in the cache")
            return None
        running.cost.note_transfer(Transfer(grant.copied_bytes, self._clock() - began_s))
        return grant

    def _seal_what_is_left(self, running: RunningSequence, grant: BlockGrant, offer: Offer) -> None:
        """A lost worker may not have come to seal what it had filled."""
        full_blocks = offer.token_count // self._limits.block_tokens
        if grant.cached_block_count < full_blocks:
            hashes = running.chain.hashes[grant.cached_block_count : full_blocks]
            self._rights.seal(running.sequence_id, grant.cached_block_count, hashes, at_once=False)

    @contextmanager
    def _bringing(self, running: RunningSequence, sequence: Sequence) -> Iterator[Bringing | None]:
        """While the block runs, blocks of another node are brought, if there are any, and kept."""
        source, hashes = running.spec.source, self._reusable_hashes(running, sequence)
        if source is None or not source.block_hashes or not hashes:
            yield None
            return
        bringing = self._rights.bring(source, hashes)
        try:
            yield bringing
        finally:
            bringing.close()

    def _reusable_hashes(self, running: RunningSequence, sequence: Sequence) -> list[bytes]:
        return running.chain.hashes[: reusable_block_count(sequence.token_count, self._limits.block_tokens)]

    def _wish(self, running: RunningSequence, place: Rank, sequence: Sequence) -> Wish:
        return Wish(
            sequence_id=running.sequence_id,
            rank=place,
            prefix_hashes=self._reusable_hashes(running, sequence),
            wanted_blocks=self._limits.first_table_blocks(sequence),
            needed_blocks=self._limits.table_blocks(sequence, 0),
            tenant=running.spec.tenant,
        )


def _sequence(running: RunningSequence) -> Sequence:
    """As far as it is known, without blocks."""
    spec = running.spec
    return Sequence(
        sequence_id=spec.sequence_id,
        prompt_token_ids=spec.prompt_token_ids,
        sampling=spec.sampling,
        block_table=[],
        output_token_ids=[*spec.emitted_token_ids, *running.new_token_ids],
    )
