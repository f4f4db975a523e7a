"""What this node's service does with sealed blocks itself: fetches them from disk, keeps them, fills them with bytes.

Everything here runs on the event loop's thread, each decision and its effects in one step. Knows no sequences, workers
or rights, and not where bytes come from.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from forebay.kv.block_traffic import Fetch, Held
from forebay.kv.effect_log import EffectLog
from forebay.kv.effects import Effects, ReadSlot, WriteSlot
from forebay.kv.tier import Tier
from forebay.kv.tiered_store import TieredStore
from forebay.kvcache.digests import Place

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OpenBlock:
    """A DEVICE block that the service may write, until `finish_fill`."""

    block_hash: bytes
    index: int


class NodeBlocks:
    """`carry_out` makes the effects of an operation happen."""

    def __init__(self, store: TieredStore, carry_out: Callable[[Effects], object]) -> None:
        self._store = store
        self._carry_out = carry_out
        self._fetching: dict[Fetch, asyncio.Event] = {}

    @asynccontextmanager
    async def fetched(self, prefix_hashes: Sequence[bytes], patience_s: float) -> AsyncIterator[Fetch]:
        """Brings what is held of a prefix into memory, as far as it gets in `patience_s`, and keeps it there.

        What is being filled already is waited for like what is read from disk.
        """
        with self._logged() as log:
            fetch = self._store.traffic.fetch(prefix_hashes, log)
            has_all = self._fetching[fetch] = asyncio.Event()
        try:
            if fetch.awaited:
                with suppress(TimeoutError):
                    async with asyncio.timeout(patience_s):
                        await has_all.wait()
            yield fetch
        finally:
            del self._fetching[fetch]
            with self._logged() as log:
                self._store.traffic.abandon(fetch, log)

    def needs_fetch(self, prefix_hashes: Sequence[bytes]) -> bool:
        """Whether some of the held prefix lies on disk only."""
        if not self._store.traffic.is_disk_on:
            return False
        tiers = itertools.takewhile(lambda tier: tier is not None, map(self._store.find, prefix_hashes))
        return Tier.DISK in tiers

    def drop_damaged(self, places: Iterable[Place]) -> None:
        """These blocks of memory are not what was sealed."""
        with self._logged() as log:
            for tier, block in places:
                block_hash = self._store.traffic.drop_damaged(tier, block, log)
                _log.warning("KV block %s was damaged in memory; it is dropped", block_hash.hex())

    def prefetch(self, prefix_hashes: Sequence[bytes]) -> int:
        """Begins to bring a prefix into memory, for whoever asks for it soon; returns how many blocks come."""
        with self._logged() as log:
            fetch = self._store.traffic.fetch(prefix_hashes, log)
            awaited_count = len(fetch.awaited)
            self._store.traffic.abandon(fetch, log)
        return awaited_count

    def is_on_its_way(self, block_hash: bytes) -> bool:
        """Whether somebody fills this block now."""
        return self._store.traffic.is_filling(block_hash)

    def hold(self, block_hash: bytes) -> Held | None:
        """Keeps a block that lies in memory where it is; None: it does not lie there."""
        if self._store.find(block_hash) not in (Tier.DEVICE, Tier.HOST):
            return None
        return self._store.traffic.hold(block_hash)

    def let_go(self, held: Iterable[Held]) -> None:
        """Ends holds, of a prefix from its first block on."""
        with self._logged() as log:
            self._store.traffic.let_go(held, log)

    def open_fill(self, block_hash: bytes) -> OpenBlock | None:
        """A DEVICE block to write; None: it is here, on its way, or there is no room. `finish_fill` must follow."""
        with self._logged() as log:
            block = self._store.open_fill(block_hash, log)
        return None if block is None else OpenBlock(block_hash, block)

    def finish_fill(self, opened: OpenBlock, *, is_good: bool) -> None:
        """The block is not written any more; it holds what its hash says if `is_good`, and is free otherwise."""
        with self._logged() as log:
            self._store.traffic.finish_fill(opened.block_hash, log, is_good=is_good)
        self._tell_fetching()

    def on_written(self, write: WriteSlot, *, is_good: bool) -> None:
        """As DiskListener."""
        with self._logged() as log:
            self._store.traffic.finish_write(write.block_hash, log, is_good=is_good)

    def on_read(self, read: ReadSlot, *, is_good: bool, is_source_bad: bool) -> None:
        """As DiskListener."""
        with self._logged() as log:
            self._store.traffic.finish_fill(read.block_hash, log, is_good=is_good, is_source_bad=is_source_bad)
        self._tell_fetching()

    def on_disk_failed(self) -> None:
        """As DiskListener."""
        with self._logged() as log:
            self._store.traffic.switch_disk_off(log)

    def _tell_fetching(self) -> None:
        for fetch, has_all in self._fetching.items():
            if not fetch.awaited:
                has_all.set()

    @contextmanager
    def _logged(self) -> Iterator[EffectLog]:
        log = EffectLog()
        yield log
        self._carry_out(log.effects())
