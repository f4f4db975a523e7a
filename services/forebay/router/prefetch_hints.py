"""Hints to KV-cache services: a prefix that was just planned with lies on disk, and is going to be asked for.

A hint overtakes the request, which the worker may let wait behind others: meanwhile the disk is read. Nobody waits for
the answer, and nothing depends on it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final

from forebay.errors import ForebayError
from forebay.rpc.status import translated
from forebay.tasks import end_task
from forebay.v1 import kvcache_pb2_grpc, upkeep_pb2

_log = logging.getLogger(__name__)

TIMEOUT_S: Final = 2.0
MOST_UNANSWERED: Final = 64
"""A service that does not answer gets no more than so many; with other services' they are all that is held here."""


class PrefetchHints:
    """`kvcache`: the stub of a node's KV-cache service."""

    def __init__(self, kvcache: "Callable[[str], kvcache_pb2_grpc.KvCacheServiceAsyncStub | None]") -> None:
        self._kvcache = kvcache
        self._unanswered: set[asyncio.Task[None]] = set()

    def send(self, node_id: str, prefix_hashes: Sequence[bytes]) -> None:
        """Tells the node. Does not wait."""
        stub = self._kvcache(node_id)
        if stub is None or len(self._unanswered) >= MOST_UNANSWERED:
            return
        task = asyncio.get_running_loop().create_task(_send(stub, prefix_hashes), name="prefetch-hint")
        self._unanswered.add(task)
        task.add_done_callback(self._unanswered.discard)

    async def close(self) -> None:
        """Gives up what is under way."""
        for task in tuple(self._unanswered):
            await end_task(task)


async def _send(stub: "kvcache_pb2_grpc.KvCacheServiceAsyncStub", prefix_hashes: Sequence[bytes]) -> None:
    try:
        with translated():
            await stub.PrefetchBlocks(upkeep_pb2.PrefetchBlocksRequest(block_hashes=prefix_hashes), timeout=TIMEOUT_S)
    except ForebayError as error:
        _log.debug("a prefetch hint was not taken: %s", error.message)
