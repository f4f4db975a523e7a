"""What an operator asks of a node's KV-cache service. For tools; requests go to a router."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from forebay.client.errors import UnreachableError
from forebay.errors import Code, DeadlineExceededError, RemoteError
from forebay.rpc.channel import open_channel
from forebay.rpc.status import translated
from forebay.v1 import common_pb2, kvcache_pb2, kvcache_pb2_grpc, upkeep_pb2

_TIMEOUT_S: Final = 10.0
_VERIFY_TIMEOUT_S: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class TierUse:
    """Blocks of one tier: free + leased + sealed = capacity; referenced: sealed ones in use or pinned."""

    tier: str
    capacity_blocks: int
    free_blocks: int
    leased_blocks: int
    sealed_blocks: int
    referenced_blocks: int


@dataclass(frozen=True, slots=True)
class KvStats:
    """A node's KV memory now, and counts since its service started.

    Blocks that left the node: evicted for want of room, flushed by command, lost with a disk that failed or damaged the
    only copy. disk_failure: why the disk tier is off.
    """

    node_id: str
    tiers: tuple[TierUse, ...]
    active_sequences: int
    attached_workers: int
    pinned_blocks: int
    prefix_blocks_asked: int
    prefix_blocks_found: int
    evicted_blocks: int
    flushed_blocks: int
    lost_blocks: int
    take_overs: int
    tier_copied_bytes: int
    disk_read_blocks: int
    disk_written_blocks: int
    disk_corrupt_blocks: int
    disk_failure: str | None
    eviction_policy: str
    block_tokens: int
    block_bytes: int


@dataclass(frozen=True, slots=True)
class KvBlock:
    """A sealed block: its chained hash, and the nearest tier it lies in."""

    block_hash: bytes
    tier: str


@dataclass(frozen=True, slots=True)
class Verified:
    """Blocks of the disk tier that were read, and those of them that were damaged and dropped."""

    verified_blocks: int
    corrupt_blocks: int


class KvOperator:
    """Connects at the first call. Errors are those of `forebay.errors`."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = open_channel(address)
        self._stub: kvcache_pb2_grpc.KvCacheServiceAsyncStub = kvcache_pb2_grpc.KvCacheServiceStub(self._channel)

    async def stats(self) -> KvStats:
        """Counts."""
        with self._asking():
            response = await self._stub.GetStats(kvcache_pb2.GetStatsRequest(), timeout=_TIMEOUT_S)
        return KvStats(
            node_id=response.node_id,
            tiers=tuple(map(_tier_use, response.tiers)),
            active_sequences=response.active_sequences,
            attached_workers=response.attached_workers,
            pinned_blocks=response.pinned_blocks,
            prefix_blocks_asked=response.prefix_blocks_asked,
            prefix_blocks_found=response.prefix_blocks_found,
            evicted_blocks=response.evicted_blocks,
            flushed_blocks=response.flushed_blocks,
            lost_blocks=response.lost_blocks,
            take_overs=response.take_overs,
            tier_copied_bytes=response.tier_copied_bytes,
            disk_read_blocks=response.disk_read_blocks,
            disk_written_blocks=response.disk_written_blocks,
            disk_corrupt_blocks=response.disk_corrupt_blocks,
            disk_failure=response.disk_failure if response.HasField("disk_failure") else None,
            eviction_policy=response.eviction_policy,
            block_tokens=response.layout.block_tokens,
            block_bytes=response.block_bytes,
        )

    async def blocks(self) -> list[KvBlock]:
        """All sealed blocks."""
        with self._asking():
            pages = self._stub.DumpIndex(kvcache_pb2.DumpIndexRequest(), timeout=_TIMEOUT_S)
            return [KvBlock(one.block_hash, _tier_name(one.tier)) async for page in pages for one in page.entries]

    async def pin(self, block_hashes: Iterable[bytes], ttl_s: float) -> Sequence[bytes]:
        """Keeps blocks from eviction for so long; returns the hashes that are not held."""
        request = upkeep_pb2.PinBlocksRequest(block_hashes=block_hashes, ttl_s=ttl_s)
        with self._asking():
            return list((await self._stub.PinBlocks(request, timeout=_TIMEOUT_S)).missing_block_hashes)

    async def unpin(self, block_hashes: Iterable[bytes] | None) -> int:
        """Ends the pins of these blocks before their time, None: of all; returns how many ended."""
        named = None if block_hashes is None else upkeep_pb2.PinnedBlocks(block_hashes=block_hashes)
        request = (
            upkeep_pb2.UnpinBlocksRequest(all=True) if named is None else upkeep_pb2.UnpinBlocksRequest(named=named)
        )
        with self._asking():
            return (await self._stub.UnpinBlocks(request, timeout=_TIMEOUT_S)).unpinned_blocks

    async def flush(self) -> int:
        """Removes all blocks that nobody refers to; returns how many."""
        with self._asking():
            return (await self._stub.FlushBlocks(upkeep_pb2.FlushBlocksRequest(), timeout=_TIMEOUT_S)).removed_blocks

    async def verify(self) -> Verified:
        """Reads and checks the whole disk tier."""
        with self._asking():
            response = await self._stub.VerifyBlocks(upkeep_pb2.VerifyBlocksRequest(), timeout=_VERIFY_TIMEOUT_S)
        return Verified(response.verified_blocks, response.corrupt_blocks)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Says of a failed call who could not be reached, does not answer, or is not what it was taken for."""
        try:
            with translated():
                yield
        except DeadlineExceededError as error:
            raise DeadlineExceededError(f"the KV-cache service at {self._address} did not answer in time") from error
        except RemoteError as error:
            if error.code == Code.UNAVAILABLE:
                raise UnreachableError(self._address, error.message, "KV-cache service") from error
            if error.code == Code.UNIMPLEMENTED:
                message = f"what serves at {self._address} is no KV-cache service, or one of another version"
                raise RemoteError(Code.UNIMPLEMENTED, message) from error
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()


def _tier_use(tier: kvcache_pb2.TierStats) -> TierUse:
    return TierUse(
        tier=_tier_name(tier.tier),
        capacity_blocks=tier.capacity_blocks,
        free_blocks=tier.free_blocks,
        leased_blocks=tier.leased_blocks,
        sealed_blocks=tier.sealed_blocks,
        referenced_blocks=tier.referenced_blocks,
    )


def _tier_name(tier: "common_pb2.KvTier.ValueType") -> str:
    return common_pb2.KvTier.Name(tier).removeprefix("KV_TIER_").lower()
