"""The routers that a client may ask, whose turn it is, and the connections to them. Knows nothing of requests."""

import asyncio
import time
from collections.abc import Iterable
from typing import Any, Final

import grpc

from forebay.rpc.channel import open_channel
from forebay.v1 import router_pb2_grpc

AVOIDED_S: Final = 5.0
"""For so long a router that was lost is asked last."""


class Routers:
    """Belongs to one event loop, but for `targets`. Connects at the first call, and again after `aclose`."""

    def __init__(self, targets: str | Iterable[str]) -> None:
        listed = targets.split(",") if isinstance(targets, str) else targets
        self.targets: Final = tuple(dict.fromkeys(target.strip() for target in listed if target.strip()))
        if not self.targets:
            raise ValueError("no router is named")
        self._turn = 0
        self._lost_s: dict[str, float] = {}
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.closed = asyncio.Event()
        """Set when what runs now is to end. Another one, not set, follows it."""

    def __str__(self) -> str:
        return ",".join(self.targets)

    def in_turn(self) -> list[str]:
        """All targets, in the order in which a request should try them: the next begins with another."""
        first, self._turn = self._turn, (self._turn + 1) % len(self.targets)
        avoided_s = time.monotonic() - AVOIDED_S
        turned = self.targets[first:] + self.targets[:first]
        return sorted(turned, key=lambda target: self._lost_s.get(target, avoided_s) > avoided_s)

    def note_lost(self, target: str) -> None:
        """It went away, or wants no work."""
        self._lost_s[target] = time.monotonic()

    def stub(self, target: str) -> "router_pb2_grpc.RouterServiceAsyncStub":
        """For calls to this router."""
        # Opened late, because a channel belongs to the event loop that runs when it is made.
        if target not in self._channels:
            self._channels[target] = open_channel(target)
        stub: Any = router_pb2_grpc.RouterServiceStub(self._channels[target])
        return stub  # type: ignore[no-any-return]  # one runtime class serves both stub types

    async def aclose(self) -> None:
        """Closes all connections; what runs on them, or waits for another try, ends as cancelled. Idempotent."""
        channels, self._channels = list(self._channels.values()), {}
        self.closed.set()
        self.closed = asyncio.Event()
        for channel in channels:
            await channel.close()
