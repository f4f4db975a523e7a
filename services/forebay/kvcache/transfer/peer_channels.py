"""Channels to other nodes' KV-cache services, one per address, opened when first needed."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from grpc.aio import Channel

from forebay.rpc.channel import open_channel

MOST_CHANNELS: Final = 64
"""Kept, those used last, besides those in use. A node that is started again may have another address."""


class PeerChannels:
    """Open until `close`."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}  # the one used last comes last
        self._users: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._channels)

    @asynccontextmanager
    async def to(self, address: str) -> AsyncIterator[Channel]:
        """The channel to HOST:PORT, which stays open inside the block."""
        self._channels[address] = channel = self._channels.pop(address, None) or open_channel(address)
        self._users[address] += 1
        try:
            yield channel
        finally:
            self._users[address] -= 1
            self._users += Counter()  # forgets those with none
            await self._close_unused()

    async def close(self) -> None:
        """Ends all, with what runs over them."""
        for channel in self._channels.values():
            await channel.close()

    async def _close_unused(self) -> None:
        unused = [address for address in self._channels if address not in self._users]
        for address in unused[: max(0, len(self._channels) - MOST_CHANNELS)]:
            await self._channels.pop(address).close()
