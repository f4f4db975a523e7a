"""Where a sequence's blocks come from, and who waits how long when there are none.

Knows the KV rights; knows nothing of the engine.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from forebay.engine.rank import Rank
from forebay.errors import (
    RETRY_AFTER_S,
    InvalidFieldError,
    KvExhaustedError,
    StaleEpochError,
    WorkerLostError,
    WriterActiveError,
)
from forebay.worker.kv_rights import BlockGrant, KvRights
from forebay.worker.line import Line
from forebay.worker.places import DEFAULT_QUEUE_LENGTH
from forebay.worker.running_sequence import Offer

_log = logging.getLogger(__name__)

RETRY_INTERVAL_S: Final = 0.05
SHORTAGE_S: Final = 8 * RETRY_INTERVAL_S
"""For so long after another worker was refused blocks, less urgent wishes wait: the service tells the workers of a node
in turn, each time that it refuses."""
LEFT_BEHIND_S: Final = 0.25
"""Most that is waited for a lost worker to be gone, so that it need not be computed again what it left: one that was
killed takes a few milliseconds, one that is frozen for ever."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How many may wait, and for how long.

    queue_length: sequences before the batch; blocks_s: most seconds a new sequence waits for KV blocks; stuck_s:
    seconds in which no sequence of the worker has room to go on, until the last by rank fails; writer_s: most seconds a
    sequence waits for its last writer to be gone.
    """

    queue_length: int = DEFAULT_QUEUE_LENGTH
    blocks_s: float = 5.0
    stuck_s: float = 1.0
    writer_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Wish:
    """Blocks a sequence would begin with: `wanted` if it can be had, never less than `needed`.

    has_begun: it was parked, and is not new.
    """

    sequence_id: str
    rank: Rank
    prefix_hashes: list[bytes]
    wanted_blocks: int
    needed_blocks: int
    tenant: str = ""
    has_begun: bool = False


class BlockSupply:
    """First by rank, first served, once blocks are short: what becomes free goes to nobody who comes later.

    `on_refusal` is called whenever one is refused.
    """

    def __init__(
        self, rights: KvRights, patience: Patience, block_tokens: int, on_refusal: Callable[[], None] = lambda: None
    ) -> None:
        self._rights = rights
        self._patience = patience
        self._block_tokens = block_tokens
        self._on_refusal = on_refusal
        self._line = Line()
        self._short_priority = 0
        self._short_until_s = float("-inf")

    def is_waiting(self, rank: Rank) -> bool:
        """Whether a wish of this one was refused, or is not even asked for because of those before it."""
        return self._line.is_standing(rank)

    def note_shortage(self, priority: int) -> None:
        """Another worker of the node was refused blocks for something so urgent; told again while it waits."""
        self._short_priority = priority
        self._short_until_s = asyncio.get_running_loop().time() + SHORTAGE_S

    @property
    def first_waiting(self) -> Rank | None:
        """Who comes next when there are blocks again; None: nobody waits."""
        return self._line.first

    async def begin(self, wish: Wish) -> BlockGrant:
        """Blocks of a new sequence.

        Raises KvExhaustedError after `blocks_s` if it is new and of the most urgent, at once if the node never can;
        TenantQuotaError at once, so that nobody waits behind a tenant that has enough; WorkerLostError when a sequence
        of this id is still being written after `writer_s`.
        """
        in_all = self._rights.device_block_count
        if wish.needed_blocks > in_all:
            raise KvExhaustedError(
                f"the prompt needs {wish.needed_blocks} KV blocks and this node has {in_all} in all; shorten it or"
                " raise --device-bytes of the KV-cache service"
            )
        block_count = min(wish.wanted_blocks, in_all)

        async def acquire() -> BlockGrant:
            return await self._rights.acquire(
                wish.sequence_id, wish.prefix_hashes, block_count, wish.tenant, wish.rank.priority
            )

        try:
            async with asyncio.timeout(None if wish.has_begun or wish.rank.priority else self._patience.blocks_s):
                return await self._in_turn(wish.rank, lambda: self._after_writer(acquire, self._patience.writer_s))
        except TimeoutError:
            raise KvExhaustedError(
                f"no {block_count} KV blocks became free in {self._patience.blocks_s:g} s", retry_after_s=RETRY_AFTER_S
            ) from None

    async def extend(self, sequence_id: str, rank: Rank, block_count: int) -> BlockGrant:
        """So many blocks more, or one where there are not so many, however long that takes. Raises WorkerLostError."""

        async def extend() -> BlockGrant:
            try:
                return await self._rights.extend(sequence_id, block_count, rank.priority if block_count == 1 else None)
            except KvExhaustedError:
                if block_count == 1:
                    raise
                return await self._rights.extend(sequence_id, 1, rank.priority)  # others are asked for that one alone

        return await self._in_turn(rank, extend)

    async def take_over(self, sequence_id: str, offer: Offer, wanted_blocks: int) -> BlockGrant:
        """Blocks of an offered sequence: when no further ones can be had now, or others wait for some, those it has.

        Raises UnknownSequenceError; WorkerLostError when the offer went to another worker, or its last writer is not
        gone after `writer_s`; InvalidFieldError when it has fewer than the offer's tokens fill, or more are sealed,
        which must not be written.
        """

        sealed_count = offer.token_count // self._block_tokens if offer.is_left_behind else None

        async def take_over() -> BlockGrant:
            try:
                block_count = wanted_blocks if self._line.is_empty else 0
                return await self._rights.take_over(sequence_id, offer.epoch, block_count, sealed_count)
            except KvExhaustedError:
                return await self._rights.take_over(sequence_id, offer.epoch, 0, sealed_count)

        try:
            most_s = self._patience.writer_s
            grant = await self._after_writer(take_over, min(LEFT_BEHIND_S, most_s) if offer.is_left_behind else most_s)
        except StaleEpochError:
            raise WorkerLostError(
                "the request's KV blocks have gone to another worker", retry_after_s=RETRY_AFTER_S
            ) from None
        if len(grant.block_ids) * self._block_tokens < offer.token_count:
            raise InvalidFieldError("the sequence has fewer blocks than its tokens fill", field="manifest.token_count")
        if grant.cached_block_count * self._block_tokens > offer.token_count:
            raise InvalidFieldError("the sequence has more tokens than are named", field="manifest.token_count")
        return grant

    async def _in_turn(self, rank: Rank, ask: Callable[[], Awaitable[BlockGrant]]) -> BlockGrant:
        """Asks at once if nobody waits who comes before, then whenever it is the first that waits."""
        await self._give_way(rank.priority)
        if self._line.is_first(rank):
            try:
                return await ask()
            except KvExhaustedError:
                _log.debug("a sequence waits for KV blocks")
        with self._line.stand(rank) as turn:
            while True:
                await turn.wait()
                await self._give_way(rank.priority)
                try:
                    return await ask()
                except KvExhaustedError:
                    self._on_refusal()
                    await asyncio.sleep(RETRY_INTERVAL_S)

    async def _give_way(self, priority: int) -> None:
        """While another worker of the node waits for something more urgent, what became free is for that one."""
        clock = asyncio.get_running_loop().time
        while priority > self._short_priority and clock() < self._short_until_s:  # noqa: ASYNC110  # a time is waited for
            await asyncio.sleep(self._short_until_s - clock())

    async def _after_writer(self, ask: Callable[[], Awaitable[BlockGrant]], most_s: float) -> BlockGrant:
        """Asks until the sequence's last writer is gone, which takes a moment after it was killed."""
        clock = asyncio.get_running_loop().time
        give_up_s = clock() + most_s
        while True:
            try:
                return await ask()
            except WriterActiveError as error:
                wait_s = error.retry_after_s or RETRY_INTERVAL_S
                if clock() + wait_s > give_up_s:
                    raise WorkerLostError(
                        "a worker that was lost may still write this request's KV blocks", retry_after_s=RETRY_AFTER_S
                    ) from None
            await asyncio.sleep(wait_s)
