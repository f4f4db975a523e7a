"""One transfer of another node's blocks to this one, asked of the KV-cache service on behalf of a sequence.

Begins before the sequence has a place; what came is kept from eviction until `close`. Nothing depends on it: what does
not come is computed. Knows no sequence, place or engine.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from forebay.errors import ForebayError
from forebay.rpc.deadline import limited_to
from forebay.rpc.status import translated
from forebay.v1 import common_pb2, kvcache_pb2_grpc, pull_pb2

_log = logging.getLogger(__name__)

TIMEOUT_S: Final = 20.0
"""Longer than any transfer that is worth waiting for, shorter than what a caller would bear."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a transfer came to."""

    byte_count: int
    seconds: float


class Bringing:
    """Under way from its making to `close`. Needs a running loop."""

    def __init__(
        self,
        stub: "kvcache_pb2_grpc.KvCacheServiceAsyncStub",
        source: common_pb2.Manifest,
        block_hashes: list[bytes],
    ) -> None:
        self._stub = stub
        self._request = pull_pb2.BringBlocksRequest(source=source, block_hashes=block_hashes, timeout_s=TIMEOUT_S)
        self._ended: asyncio.Future[Transfer] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name="kv-bringing")

    async def ended(self) -> Transfer:
        """Waits until all has come that will."""
        return await asyncio.shield(self._ended)

    def close(self) -> None:
        """Ends the transfer, if it has not ended, and keeps nothing any more."""
        self._task.cancel()

    async def _run(self) -> None:
        began_s, byte_count = time.monotonic(), 0
        call = self._stub.BringBlocks(self._request)
        try:
            # Its own deadline, not the request's: that one cancels by itself.
            with limited_to(None), translated():
                async for response in call:
                    byte_count = response.transfer_bytes
                    if response.HasField("failure"):
                        _log.warning("not all blocks came from another node: %s", response.failure.message)
                    self._end(byte_count, began_s)
        except ForebayError as error:
            _log.warning("blocks of another node were not brought: %s", error.message)
        finally:
            call.cancel()
            self._end(byte_count, began_s)

    def _end(self, byte_count: int, began_s: float) -> None:
        if not self._ended.done():
            self._ended.set_result(Transfer(byte_count, time.monotonic() - began_s))
