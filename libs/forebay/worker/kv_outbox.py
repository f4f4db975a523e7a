"""Seals and releases that nobody waits for: collected while a call is under way, sent in order, tried again.

Knows neither tokens nor why a sequence ended. Both are kept until they are answered: without a release memory would be
held for a lease and two heartbeats, and after a seal that is lost the next one would be refused. Repeating is harmless.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Final

from forebay.errors import Code, ForebayError, NotAttachedError
from forebay.rpc.status import translated
from forebay.tasks import end_task, within
from forebay.v1 import kvcache_pb2
from forebay.worker.attachment import KvLink, sequence_epochs

_log = logging.getLogger(__name__)

CALL_TIMEOUT_S: Final = 2.0
_UNANSWERED: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
RETRY_INTERVAL_S: Final = 0.1
CLOSE_TIMEOUT_S: Final = 1.0
GATHER_S: Final = 0.5
"""How long a seal may wait for others. Who shares a prompt comes at any moment, who goes on from an answer after it."""


@dataclass(slots=True)
class _Seal:
    epoch: int
    first_block_index: int
    block_hashes: list[bytes]


class KvOutbox:
    """Invariant: a sequence's seals are sent before its release, and in the order of its table."""

    def __init__(self, link: KvLink) -> None:
        self._link = link
        self._seals: dict[str, _Seal] = {}  # by sequence id; later blocks join those that still wait
        self._releases: set[tuple[str, int]] = set()  # sequence id and epoch
        self._parked: dict[tuple[str, int], asyncio.Future[None]] = {}  # the same, of those that go on later
        self._unheard: set[tuple[str, int]] = set()  # sequence id and number of the request
        self._wake = asyncio.Event()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None  # of seals that may wait
        self._is_failing = False  # said once per outage

    def seal(
        self, sequence_id: str, epoch: int, first_block_index: int, block_hashes: list[bytes], *, at_once: bool
    ) -> None:
        """Seals the next blocks of a sequence: at once, or within GATHER_S and before the next release."""
        waiting = self._seals.get(sequence_id)
        if waiting is None or waiting.epoch != epoch:  # those of a lost sequence of this id are void
            waiting = self._seals[sequence_id] = _Seal(epoch, first_block_index, [])
        waiting.block_hashes += block_hashes
        self._is_empty.clear()
        if at_once:
            self._wake.set()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._wake.set)

    def forget_seals(self, sequence_id: str) -> None:
        """Seals of a sequence that are not under way yet need not be sent."""
        self._seals.pop(sequence_id, None)

    def release(self, sequence_id: str, epoch: int) -> None:
        """Releases a sequence soon."""
        self._releases.add((sequence_id, epoch))
        self._is_empty.clear()
        self._wake.set()

    async def park(self, sequence_id: str, epoch: int) -> None:
        """Releases a sequence that goes on later; returns when that is answered. Cancelled, it is released too."""
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._parked[sequence_id, epoch] = answered
        self._is_empty.clear()
        self._wake.set()
        await answered

    def release_unheard(self, sequence_id: str, request_number: int) -> None:
        """Releases soon what a request was granted whose answer did not come, if it was granted anything."""
        self._unheard.add((sequence_id, request_number))
        self._is_empty.clear()
        self._wake.set()

    async def close(self) -> None:
        """Waits a moment for what is still to be sent, then stops."""
        self._wake.set()
        await within(CLOSE_TIMEOUT_S, self._is_empty.wait())
        if self._task is not None:
            await end_task(self._task)

    def start(self) -> None:
        """Begins to send. Needs a running loop; call it outside of any request, whose deadline is not this task's."""
        self._task = asyncio.create_task(self._run(), name="kv-outbox")

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            while self._seals or self._releases or self._parked or self._unheard:
                if not await self._send():
                    await asyncio.sleep(RETRY_INTERVAL_S)
            self._is_empty.set()

    async def _send(self) -> bool:
        """One round: seals, then releases. Returns whether everything that waited was answered."""
        if self._link.attachment is None:
            self._seals.clear()  # their sequences are lost
            self._unheard.clear()  # whatever was granted, was granted to an attachment that is no more
            return not self._releases and not self._parked
        attachment_id = self._link.attachment.attachment_id
        releases, self._releases = self._releases, set()
        parked, self._parked = self._parked, {}
        unheard, self._unheard = self._unheard, set()
        seals, self._seals = self._seals, {}
        try:
            with translated():
                if seals:
                    await self._send_seals(attachment_id, seals)
                if releases or parked or unheard:
                    request = kvcache_pb2.ReleaseSequenceRequest(
                        attachment_id=attachment_id,
                        sequences=sequence_epochs(releases),
                        parked=sequence_epochs(parked),
                        unheard=[
                            kvcache_pb2.UnheardRequest(sequence_id=sequence_id, request_number=number)
                            for sequence_id, number in unheard
                        ],
                    )
                    await self._link.stub.ReleaseSequence(request, timeout=CALL_TIMEOUT_S)
        except ForebayError as error:
            if isinstance(error, NotAttachedError):
                self._link.detach()
            if not self._is_failing:
                _log.warning("%d releases wait: %s", len(releases) + len(parked), error.message)
            self._is_failing = True
            self._releases = releases | self._releases
            self._parked = parked | self._parked
            self._unheard = unheard | self._unheard
            if error.code in _UNANSWERED:
                self._keep(seals)
            return False
        self._is_failing = False
        for answered in parked.values():
            if not answered.done():
                answered.set_result(None)
        return True

    def _keep(self, seals: dict[str, _Seal]) -> None:
        """Nobody answered: they are sent again. A later seal would leave a gap behind one that is lost."""
        for sequence_id, seal in seals.items():
            later = self._seals.get(sequence_id)
            if later is not None and later.epoch != seal.epoch:
                continue
            if later is not None:
                seal.block_hashes += later.block_hashes
            self._seals[sequence_id] = seal

    async def _send_seals(self, attachment_id: int, seals: dict[str, _Seal]) -> None:
        entries = [
            kvcache_pb2.SealEntry(
                sequence_id=sequence_id,
                epoch=seal.epoch,
                first_block_index=seal.first_block_index,
                block_hashes=seal.block_hashes,
            )
            for sequence_id, seal in seals.items()
        ]
        request = kvcache_pb2.SealBlocksRequest(attachment_id=attachment_id, entries=entries)
        response = await self._link.stub.SealBlocks(request, timeout=CALL_TIMEOUT_S)
        for entry, result in zip(entries, response.results, strict=True):
            if result.HasField("error_reason"):
                _log.warning("blocks were not sealed: %s", result.error_reason)
                if self._link.owned_epochs.get(entry.sequence_id) == entry.epoch:
                    self._link.lose([entry.sequence_id])
