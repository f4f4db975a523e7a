"""How sealed blocks come from another node: the port, what it is asked, and what it needs of both nodes' memory.

Pure. Implementations carry bytes; what they carry is decided by `pull_source` and `pull_sink`.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from forebay.errors import ForebayError
from forebay.kv.layout import KvLayout
from forebay.kv.pull_sink import PullSink


@dataclass(frozen=True, slots=True)
class SourceNode:
    """The node that holds the blocks; `address` is its KV-cache service's, HOST:PORT."""

    node_id: str
    address: str


@dataclass(frozen=True, slots=True)
class PullRequest:
    """Blocks wanted from another node.

    block_hashes: in the order of the sequence; a block's index is its place here.
    layout: of the bytes as they are stored there.
    seal_wait_s: how long the source waits for each block that is not sealed yet.
    sequence_id: in which they are being sealed; None: all are sealed.
    """

    source: SourceNode
    block_hashes: Sequence[bytes]
    layout: KvLayout
    timeout_s: float
    seal_wait_s: float = 0.0
    sequence_id: str | None = None


@dataclass(frozen=True, slots=True)
class PullOutcome:
    """What became of a pull. Every block is in exactly one of the two.

    arrived: indexes of blocks whose bytes are here and match their digest, ascending.
    missing: why each other block is not.
    """

    arrived: tuple[int, ...]
    missing: Mapping[int, ForebayError]


class BlockTarget(Protocol):
    """The receiver's memory. What it raises, a ForebayError, ends the pull."""

    def memory(self, block_index: int) -> memoryview:
        """Where the block's bytes go; writable, of a block's size. Not asked for a block that has arrived."""
        ...

    def arrived(self, block_index: int) -> None:
        """The block's bytes are there and match their digest; they are not written again."""
        ...


class BlockTransport(Protocol):
    """A way for KV bytes between nodes."""

    def reaches(self, source: SourceNode) -> bool:
        """Whether it is worth trying, as far as is known."""
        ...

    async def pull(self, request: PullRequest, sink: PullSink, target: BlockTarget, timeout_s: float) -> None:
        """One session: moves what `sink` misses, and returns when all of it is settled.

        When it returns, raises or is cancelled, nobody writes to the target's memory any more.
        Errors: NoDataConnectionError: this way is closed, another may be open; whatever the source refuses with;
        DeadlineExceededError; BadFrameError; RemoteError when the connection broke, after which a new session resumes.
        """
        ...


class SequenceState(Enum):
    """Whether more blocks of a sequence will be sealed."""

    SEALING = "sealing"
    ENDED = "ended"  # released or handed over; also when it was never heard of
    LOST = "lost"  # its worker died


@dataclass(frozen=True, slots=True, eq=False)
class HeldBlock:
    """One hold of a sealed block, which stays meanwhile. `memory` is read-only.

    digest: its xxh3-128; the first to ask for it waits as long as reading the block takes.
    """

    memory: memoryview
    digest: Callable[[], bytes]


class SealedBlocks(Protocol):
    """The sender's memory. All on the event loop's thread."""

    @property
    def layout(self) -> KvLayout:
        """Of all blocks."""
        ...

    def fetched(self, block_hashes: Sequence[bytes]) -> AbstractAsyncContextManager[None]:
        """Inside the block what is held of this prefix lies in memory, as far as it could be brought there.

        Errors: DrainingError: no more blocks are given to other nodes.
        """
        ...

    def hold(self, block_hash: bytes) -> HeldBlock | None:
        """Takes a reference to a block; None: it does not lie sealed in memory here."""
        ...

    def release(self, block: HeldBlock) -> None:
        """Gives the reference back, this very one: of a block that moved meanwhile, another may be to another place."""
        ...

    def state_of(self, sequence_id: str) -> SequenceState:
        """Whether more of the sequence will come."""
        ...

    def follow(self, sequence_id: str, on_change: Callable[[], None]) -> Callable[[], None]:
        """Calls `on_change` whenever the sequence seals a block or ends, until what this returns is called."""
        ...
