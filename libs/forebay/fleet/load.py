"""How busy workers are: told on core NATS, at most four times a second and at least once."""

import asyncio
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from forebay.events.connection import Connection
from forebay.fleet.member import Load
from forebay.fleet.messages import load_from_proto, load_to_proto
from forebay.tasks import end_task, within
from forebay.v1 import events_pb2

MIN_INTERVAL_S: Final = 0.25
MAX_INTERVAL_S: Final = 1.0


class LoadPublisher:
    """Publishes a worker's load in the background: soon after a change, and each second without one.

    Contexts grow with every token: that alone waits for the second, since each message costs cores that compute.
    """

    def __init__(self, connection: Connection, worker_id: str) -> None:
        self._connection = connection
        self._worker_id = worker_id
        self._load = Load()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to publish. Needs a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="load-publisher")

    def update(self, load: Load) -> None:
        """Says how busy the worker is now. Cheap; call it as often as you like, on the loop's thread."""
        before, self._load = self._load, load
        if replace(load, context_tokens=before.context_tokens) != before:
            self._wake.set()

    async def close(self) -> None:
        """Stops. Idempotent."""
        if self._task is None:
            return
        await end_task(self._task)
        self._task = None

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            payload = load_to_proto(self._worker_id, self._load).SerializeToString()
            await self._connection.publish(f"forebay.load.{self._worker_id}", payload)
            await asyncio.sleep(MIN_INTERVAL_S)
            await within(MAX_INTERVAL_S - MIN_INTERVAL_S, self._wake.wait())


class LoadView:
    """The last load heard of each worker."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loads: dict[str, Load] = {}
        self._subscription: Subscription | None = None
        self._listeners: list[Callable[[str], None]] = []

    @property
    def loads(self) -> Mapping[str, Load]:
        """Loads by worker id, as a live read-only view."""
        return MappingProxyType(self._loads)

    def on_report(self, listener: Callable[[str], None]) -> None:
        """Calls `listener` with a worker's id after each of its reports."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Subscribes."""
        self._subscription = await self._connection.subscribe("forebay.load.*", self._on_message)

    def keep(self, worker_ids: Container[str]) -> None:
        """Forgets every worker that is not one of these."""
        for worker_id in [known for known in self._loads if known not in worker_ids]:
            del self._loads[worker_id]

    async def close(self) -> None:
        """Unsubscribes."""
        if self._subscription is not None:
            await self._connection.unsubscribe(self._subscription)

    async def _on_message(self, message: Msg) -> None:
        report = events_pb2.WorkerLoad.FromString(message.data)
        self._loads[report.worker_id] = load_from_proto(report)
        for listener in self._listeners:
            listener(report.worker_id)
