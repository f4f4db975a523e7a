"""A worker as the KV-cache service sees it: attached with this process, asking for rights, one call at a time."""

from collections.abc import Sequence
from typing import Any

import grpc

from forebay.role import Role
from forebay.rpc.status import translated
from forebay.v1 import common_pb2, kvcache_pb2, kvcache_pb2_grpc
from forebay.wire.layout import layout_from_proto
from forebay.worker.attachment import attach_request

ARITHMETIC = "test"
_TIMEOUT_S = 30.0
_STREAM_S = 600.0


class KvWorker:
    """An attached worker. Every call raises the error of ours that the service answers with."""

    def __init__(
        self,
        stub: "kvcache_pb2_grpc.KvCacheServiceAsyncStub",
        attached: kvcache_pb2.Attached,
        stream: "grpc.aio.UnaryStreamCall[kvcache_pb2.AttachWorkerRequest, kvcache_pb2.AttachWorkerResponse]",
    ) -> None:
        self.stub, self.attached, self.stream = stub, attached, stream
        self.attachment_id = attached.attachment_id
        self.last_answer: int | None = None

    async def acquire(self, sequence_id: str, **grant: Any) -> kvcache_pb2.AcquireBlocksResponse:
        """AcquireBlocks with one of new_sequence, take_over, extend."""
        request = kvcache_pb2.AcquireBlocksRequest(attachment_id=self.attachment_id, sequence_id=sequence_id, **grant)
        with translated():
            return await self.stub.AcquireBlocks(request, timeout=_TIMEOUT_S)

    async def begin(
        self, sequence_id: str = "s", block_count: int = 2, prefix: Sequence[bytes] = ()
    ) -> kvcache_pb2.AcquireBlocksResponse:
        """Begins a sequence."""
        new = kvcache_pb2.NewSequence(prefix_hashes=prefix, block_count=block_count)
        return await self.acquire(sequence_id, new_sequence=new)

    async def take_over(
        self, epoch: int, block_count: int = 0, sequence_id: str = "s"
    ) -> kvcache_pb2.AcquireBlocksResponse:
        """Takes a sequence over."""
        return await self.acquire(sequence_id, take_over=kvcache_pb2.TakeOver(epoch=epoch, block_count=block_count))

    async def extend(self, epoch: int, block_count: int, sequence_id: str = "s") -> kvcache_pb2.AcquireBlocksResponse:
        """Lengthens a sequence."""
        return await self.acquire(sequence_id, extend=kvcache_pb2.Extend(epoch=epoch, block_count=block_count))

    async def seal(self, *entries: kvcache_pb2.SealEntry) -> list[kvcache_pb2.SealResult]:
        """Seals blocks of any number of sequences."""
        request = kvcache_pb2.SealBlocksRequest(attachment_id=self.attachment_id, entries=entries)
        with translated():
            return list((await self.stub.SealBlocks(request, timeout=_TIMEOUT_S)).results)

    async def release(self, *sequences: tuple[str, int]) -> int:
        """Gives up sequences, named with their epochs; returns how many were."""
        request = kvcache_pb2.ReleaseSequenceRequest(attachment_id=self.attachment_id, sequences=_named(sequences))
        with translated():
            return (await self.stub.ReleaseSequence(request, timeout=_TIMEOUT_S)).released_count

    async def renew(self, *sequences: tuple[str, int]) -> list[str]:
        """Renews leases, and says that it writes to nothing that is not named; returns the lost ones."""
        request = kvcache_pb2.RenewLeaseRequest(
            attachment_id=self.attachment_id, sequences=_named(sequences), last_answer=self.last_answer
        )
        with translated():
            response = await self.stub.RenewLease(request, timeout=_TIMEOUT_S)
        self.last_answer = response.answer_number
        return list(response.lost_sequence_ids)


async def attach(
    stub: "kvcache_pb2_grpc.KvCacheServiceAsyncStub", model_digest: str, layout: common_pb2.KvLayout, /, **fields: Any
) -> KvWorker:
    """Attaches this process as worker "w"; `fields` replace those of the request."""
    request = attach_request("w", Role.DECODE, model_digest, layout_from_proto(layout), ARITHMETIC)
    for name, value in fields.items():
        setattr(request, name, value)
    stream = stub.AttachWorker(request, timeout=_STREAM_S)
    with translated():
        response = await stream.read()
    assert isinstance(response, kvcache_pb2.AttachWorkerResponse)
    return KvWorker(stub, response.attached, stream)


def seal_entry(epoch: int, block_hashes: Sequence[bytes] = (), **fields: Any) -> kvcache_pb2.SealEntry:
    """Blocks of sequence "s" to seal, from the first on; `fields` replace those of the entry."""
    return kvcache_pb2.SealEntry(**{"sequence_id": "s", "epoch": epoch, "block_hashes": block_hashes, **fields})


def numbered_hashes(count: int, first: int = 0) -> tuple[bytes, ...]:
    """Distinct block hashes."""
    return tuple(number.to_bytes(16, "big") for number in range(first, first + count))


def _named(sequences: Sequence[tuple[str, int]]) -> list[kvcache_pb2.SequenceEpoch]:
    return [kvcache_pb2.SequenceEpoch(sequence_id=name, epoch=epoch) for name, epoch in sequences]
