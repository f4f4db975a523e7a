"""Both ends of a pull on real sockets: a source with its memory, and the transports of a receiver."""

from collections.abc import AsyncIterator

import pytest

from forebay.kv.block_transport import BlockTransport, PullRequest, SourceNode
from forebay.kv.layout import KvDtype, KvLayout
from forebay.kvcache.transfer.data_listener import DataListener
from forebay.kvcache.transfer.grpc_transport import GrpcBlockTransport
from forebay.kvcache.transfer.peer_channels import PeerChannels
from forebay.kvcache.transfer.source import SERVICE, BlockSource, add_block_source
from forebay.kvcache.transfer.tcp_transport import TcpBlockTransport
from forebay.rpc.channel import open_channel
from forebay.rpc.server import Server
from forebay.testing.kv_worker import numbered_hashes
from forebay.testing.plain_blocks import PlainBlocks, random_block
from forebay.testing.waiting import until

LAYOUT = KvLayout(KvDtype.BFLOAT16, layers=12, kv_heads=3, head_dim=64, block_tokens=32)  # 294,912 bytes


class Ends:
    """A source with its memory, and the transports of a receiver."""

    def __init__(self) -> None:
        self.blocks = PlainBlocks(LAYOUT)
        self.listener = DataListener("127.0.0.1")
        self.server = Server("127.0.0.1:0")
        self.channels = PeerChannels()
        self.tcp, self.grpc = TcpBlockTransport(self.channels), GrpcBlockTransport(self.channels)
        self.node = SourceNode("far", "")

    async def start(self) -> None:
        self.listener.start()
        self.server.add(add_block_source, BlockSource(self.blocks, self.listener), SERVICE)
        self.node = SourceNode("far", await self.server.start())
        self.channel = open_channel(self.node.address)

    async def stop(self) -> None:
        await self.channel.close()
        await self.channels.close()
        await self.server.stop(0)
        await self.listener.close()

    def seal(self, count: int, first: int = 0, sequence_id: str | None = None) -> None:
        for block_hash in numbered_hashes(count, first):
            self.blocks.seal(block_hash, content_of(block_hash), sequence_id)

    def request(self, count: int, timeout_s: float = 20, seal_wait_s: float = 0, **more: object) -> PullRequest:
        return PullRequest(self.node, numbered_hashes(count), LAYOUT, timeout_s, seal_wait_s, **more)  # type: ignore[arg-type]

    async def all_given_back(self) -> None:
        await until(lambda: self.blocks.references == 0 and self.blocks.followers() == 0)


def content_of(block_hash: bytes) -> bytearray:
    return random_block(block_hash, LAYOUT.block_bytes)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    both = Ends()
    await both.start()
    yield both
    await both.stop()


@pytest.fixture(params=["tcp", "grpc"])
def transport(ends: Ends, request: pytest.FixtureRequest) -> BlockTransport:
    chosen: BlockTransport = getattr(ends, request.param)
    return chosen


@pytest.fixture
def new_ends() -> type[Ends]:
    """Makes ends that are not started yet."""
    return Ends
