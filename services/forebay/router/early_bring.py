"""A transfer to the decode worker's node that begins while the prompt is still being computed on another.

A hint: the decode worker asks for the same blocks itself when it starts, and waits for what is on its way then. Until
`close` what came is kept from eviction. Knows the plan's nodes and the prompt's hashes, not the request's course.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from forebay.errors import ForebayError
from forebay.kv.hashing import block_hashes
from forebay.routing.fleet import Worker
from forebay.rpc.status import translated
from forebay.v1 import common_pb2, kvcache_pb2_grpc, pull_pb2
from forebay.wire.layout import layout_to_proto

_log = logging.getLogger(__name__)

TIMEOUT_S: Final = 60.0
"""Most seconds for all of it, and for each block to be sealed: longer than a prompt takes to be computed."""


class EarlyBring:
    """Begins with `start`; `close` ends it, whatever its state."""

    def __init__(self, stub: "kvcache_pb2_grpc.KvCacheServiceAsyncStub", request: pull_pb2.BringBlocksRequest) -> None:
        self._stub = stub
        self._request = request
        self._task: asyncio.Task[None] | None = None

    def start(self, sequence_id: str) -> None:
        """The sequence is being sealed under this id."""
        self._request.source.sequence_id = sequence_id
        self._task = asyncio.get_running_loop().create_task(self._run(), name="early-bring")

    def close(self) -> None:
        """Nobody needs it any more. Idempotent."""
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        call = self._stub.BringBlocks(self._request)
        try:
            with translated():
                async for response in call:
                    if response.HasField("failure"):
                        _log.info("not all blocks were brought early: %s", response.failure.message)
        except ForebayError as error:
            _log.info("no blocks were brought early: %s", error.message)
        finally:
            call.cancel()


def bring_request(
    prefill: Worker, decode: Worker, kvcache_address: str, root: bytes, token_ids: Sequence[int]
) -> pull_pb2.BringBlocksRequest | None:
    """What the decode worker's node is to be asked; None: the prompt fills no block of either node.

    root: the prompt's first parent hash. kvcache_address: of the prefill worker's node.
    """
    source_hashes = block_hashes(root, token_ids, prefill.layout.block_tokens)
    target_hashes = block_hashes(root, token_ids, decode.layout.block_tokens)
    if not source_hashes or not target_hashes:
        return None
    source = common_pb2.Manifest(
        node_id=prefill.node_id,
        kvcache_address=kvcache_address,
        layout=layout_to_proto(prefill.layout),
        token_count=len(token_ids),
        block_hashes=source_hashes,
        model_digest=prefill.model_digest,
    )
    return pull_pb2.BringBlocksRequest(
        source=source, block_hashes=target_hashes, timeout_s=TIMEOUT_S, seal_wait_s=TIMEOUT_S
    )
