"""Channels to other nodes' KV-cache services, one per address, opened when first needed."""

from grpc.aio import Channel

from forebay.rpc.channel import open_channel


class PeerChannels:
    """Open until `close`."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}

    def to(self, address: str) -> Channel:
        """The channel to HOST:PORT."""
        if address not in self._channels:
            self._channels[address] = open_channel(address)
        return self._channels[address]

    async def close(self) -> None:
        """Ends all, with what runs over them."""
        for channel in self._channels.values():
            await channel.close()
