"""Publishes the changes of one node's KV index. Knows the numbering, not the index.

Losing events is allowed and expected (NATS away, a burst beyond the buffer): the next number that readers see shows
them the gap, and they ask the KV-cache service itself.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from forebay.events.connection import Connection
from forebay.tasks import end_task, within
from forebay.v1 import events_pb2

HEARTBEAT_INTERVAL_S: Final = 1.0
MAX_BATCH_EVENTS: Final = 256
MAX_BATCH_BYTES: Final = 512 * 1024
"""NATS takes no message of more than 1 MiB unless it is set up to."""
MAX_WAITING_EVENTS: Final = 16_384


def subject(node_id: str) -> str:
    """Where a node's KV events are published."""
    return f"forebay.kv.{node_id}"


class KvEventPublisher:
    """Sends KvEventBatch messages in the background, and a heartbeat each second.

    Events must come in order and without holes: number 1 first, then as `publish` is told.
    """

    def __init__(self, connection: Connection, node_id: str, incarnation: int) -> None:
        self._connection = connection
        self._node_id = node_id
        self._incarnation = incarnation
        self._next_number = 1
        self._waiting: deque[tuple[int, events_pb2.KvEvent]] = deque(maxlen=MAX_WAITING_EVENTS)
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to send. Needs a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="kv-event-publisher")

    def publish(self, first_event_number: int, events: Sequence[events_pb2.KvEvent]) -> None:
        """Hands events over to be sent; `events[i]` has number first_event_number + i. Never blocks.

        When the buffer is full its oldest events are forgotten. Call it on the loop's thread.
        """
        self._waiting.extend(enumerate(events, first_event_number))
        self._next_number = first_event_number + len(events)
        self._wake.set()

    async def close(self) -> None:
        """Sends what waits and ends. Idempotent."""
        if self._task is None:
            return
        await end_task(self._task)
        self._task = None
        await self._send_waiting()

    async def _run(self) -> None:
        while True:
            await self._send_waiting()
            if not await within(HEARTBEAT_INTERVAL_S, self._wake.wait()):
                await self._send(self._next_number, ())

    async def _send_waiting(self) -> None:
        self._wake.clear()
        while self._waiting:
            first_number, event = self._waiting.popleft()
            batch, size_bytes = [event], event.ByteSize()
            # A hole, left where the full buffer forgot events, must show as one: a batch is always consecutive.
            while self._waiting and len(batch) < MAX_BATCH_EVENTS and self._waiting[0][0] == first_number + len(batch):
                size_bytes += self._waiting[0][1].ByteSize()
                if size_bytes > MAX_BATCH_BYTES:
                    break
                batch.append(self._waiting.popleft()[1])
            await self._send(first_number, batch)

    async def _send(self, first_number: int, events: Sequence[events_pb2.KvEvent]) -> None:
        batch = events_pb2.KvEventBatch(
            node_id=self._node_id,
            incarnation=self._incarnation,
            first_event_number=first_number,
            events=events,
        )
        await self._connection.publish(subject(self._node_id), batch.SerializeToString())
