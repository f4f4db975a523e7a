"""The fleet as this process sees it: follows the bucket, and keeps the last known fleet while NATS is away."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol

import nats.errors
from google.protobuf.message import DecodeError
from nats.js.kv import KeyValue

from forebay.errors import ForebayError
from forebay.events.connection import Connection
from forebay.fleet.bucket import TTL_S, open_bucket
from forebay.fleet.member import Member
from forebay.fleet.messages import member_from_proto
from forebay.fleet.roster import Roster
from forebay.tasks import end_task, within
from forebay.v1 import events_pb2

_log = logging.getLogger(__name__)

RETRY_S: Final = 0.5
POLL_S: Final = 0.25
RESYNC_INTERVAL_S: Final = 60.0


class Watcher(Protocol):
    """A NATS key watcher, typed: None ends the first full read."""

    async def updates(self, timeout: float) -> KeyValue.Entry | None:  # noqa: ASYNC109  # the client library's name
        """The next record. Raises TimeoutError."""
        ...

    async def stop(self) -> None:
        """Ends the watch."""
        ...


class FleetView:
    """Watches the fleet's bucket. Listeners are called on the loop, after each change of `members`."""

    def __init__(self, connection: Connection, ttl_s: float = TTL_S) -> None:
        self._connection = connection
        self._ttl_s = ttl_s
        self._roster = Roster(grace_s=ttl_s)
        self._listeners: list[Callable[[], None]] = []
        self._is_synced = False
        self._restart = asyncio.Event()
        self._loaded = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._remove_listeners = (
            connection.on_reconnected(self._restart.set),
            connection.on_disconnected(self._on_disconnected),
        )

    @property
    def members(self) -> Mapping[str, Member]:
        """Members by worker id."""
        return self._roster.members

    @property
    def is_current(self) -> bool:
        """Whether the bucket is being followed; when not, `members` is the last known fleet."""
        return self._is_synced and self._connection.is_connected

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after each change of `members`."""
        self._listeners.append(listener)

    async def start(self) -> None:
        """Follows the bucket in the background; `wait_loaded` returns after the first full read."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="fleet-view")

    async def wait_loaded(self) -> None:
        """Returns once the bucket has been read as a whole."""
        await self._loaded.wait()

    async def close(self) -> None:
        """Stops following. Idempotent."""
        if self._task is None:
            return
        for remove in self._remove_listeners:
            remove()
        await end_task(self._task)
        self._task = None

    async def _run(self) -> None:
        is_failure_logged = False
        while True:
            self._restart.clear()
            try:
                await self._follow()
                is_failure_logged = False
            except (nats.errors.Error, TimeoutError, OSError) as error:
                if not is_failure_logged and self._connection.is_connected:
                    is_failure_logged = True
                    _log.warning("cannot follow the fleet: %s; trying again", error or type(error).__name__)
                await within(RETRY_S, self._restart.wait())
            finally:
                self._is_synced = False

    async def _follow(self) -> None:
        """Reads the bucket, then applies its changes until NATS reconnects or the next full read is due."""
        bucket = await open_bucket(self._connection.jetstream(), self._ttl_s)
        watcher: Watcher = await bucket.watchall()
        try:
            await self._resync(watcher)
            loop = asyncio.get_running_loop()
            resync_at_s = loop.time() + RESYNC_INTERVAL_S
            while not self._restart.is_set() and loop.time() < resync_at_s:
                await self._apply_next(watcher)
        finally:
            with suppress(nats.errors.Error):
                await watcher.stop()

    async def _resync(self, watcher: Watcher) -> None:
        present: dict[str, Member] = {}
        while (entry := await watcher.updates(timeout=self._ttl_s)) is not None:
            member = _member_of(entry)
            if member is not None:
                present[member.key] = member
            else:
                present.pop(entry.key, None)
        is_changed = self._roster.resync(present.values(), asyncio.get_running_loop().time())
        self._is_synced = True
        self._loaded.set()
        if is_changed:
            self._tell()

    async def _apply_next(self, watcher: Watcher) -> None:
        """Applies one change, or what time alone changes."""
        now_s = asyncio.get_running_loop().time()
        expiry_s = self._roster.next_expiry_s
        # Never for long: a reconnect must be noticed although no change comes.
        wait_s = POLL_S if expiry_s is None else min(POLL_S, max(0.0, expiry_s - now_s))
        try:
            entry = await watcher.updates(timeout=wait_s)
        except TimeoutError:
            entry = None
        is_changed = False
        if isinstance(entry, KeyValue.Entry):
            member = _member_of(entry)
            worker_id = entry.key.partition(".")[2]
            is_changed = self._roster.delete(worker_id) if member is None else self._roster.put(member)
        if self._connection.is_connected:
            is_changed |= self._roster.expire(asyncio.get_running_loop().time())
        if is_changed:
            self._tell()

    def _on_disconnected(self) -> None:
        self._is_synced = False

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


def _member_of(entry: KeyValue.Entry) -> Member | None:
    """The member of a record; None for a deleted, expired or unreadable one."""
    if entry.operation is not None or not entry.value:
        return None
    try:
        return member_from_proto(events_pb2.FleetMember.FromString(entry.value))
    except (ForebayError, DecodeError) as error:
        _log.warning("unreadable fleet record %s: %s", entry.key, error)
        return None
