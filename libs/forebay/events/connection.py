"""One NATS connection of one process: reconnects for ever, says so once per outage, never holds a caller up.

Knows subjects as strings and payloads as bytes, not what they mean. What is published while NATS is away is dropped:
every reader of ours recovers by itself, and old news would only mislead it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext

from forebay.errors import StartError
from forebay.telemetry import inject

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 2
RECONNECT_INTERVAL_S: Final = 0.25
PING_INTERVAL_S: Final = 5
JETSTREAM_TIMEOUT_S: Final = 2.0
FLUSH_TIMEOUT_S: Final = 2
START_TIMEOUT_S: Final = 15.0

Handler = Callable[[Msg], Awaitable[None]]
Listener = Callable[[], None]


async def connect(url: str, name: str, timeout_s: float = START_TIMEOUT_S) -> "Connection":
    """Connects to `url` ("nats://HOST:PORT", several separated by commas); `name` shows in the server's monitoring.

    Raises:
        StartError: NATS was not reached within `timeout_s`.
    """
    connection = Connection()
    try:
        async with asyncio.timeout(timeout_s):
            await connection.open(url, name)
    except (TimeoutError, OSError, nats.errors.Error) as error:
        await connection.close()
        raise StartError(f"cannot reach NATS at {url}; start nats-server or name another with --nats-url") from error
    return connection


class Connection:
    """A connected client. Use `connect`."""

    def __init__(self) -> None:
        self._client = Client()
        self._is_outage_logged = self._was_connected = False
        self._reconnected: list[Listener] = []
        self._disconnected: list[Listener] = []
        self._dropped: dict[int, Listener] = {}

    async def open(self, url: str, name: str) -> None:
        """Connects, trying until it succeeds or is cancelled."""
        await self._client.connect(
            servers=url.split(","),
            name=name,
            connect_timeout=CONNECT_TIMEOUT_S,
            reconnect_time_wait=RECONNECT_INTERVAL_S,  # type: ignore[arg-type]  # seconds; a fraction works
            max_reconnect_attempts=-1,
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_reconnected,
        )
        self._was_connected = True
        self._is_outage_logged = False

    @property
    def is_connected(self) -> bool:
        """Whether what is published now reaches a server."""
        return self._client.is_connected

    def on_reconnected(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` after each reconnect. Returns what removes it."""
        self._reconnected.append(listener)
        return lambda: self._reconnected.remove(listener)

    def on_disconnected(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` at the begin of each outage. Returns what removes it."""
        self._disconnected.append(listener)
        return lambda: self._disconnected.remove(listener)

    async def publish(self, subject: str, payload: bytes) -> bool:
        """Sends once, with the caller's trace context, to whoever listens. False: NATS is away, nothing was sent."""
        if not self._client.is_connected:
            return False
        try:
            await self._client.publish(subject, payload, headers=inject() or None)
        except (nats.errors.Error, OSError) as error:
            self._log_once("publish failed: %s", error)
            return False
        return True

    async def subscribe(self, subject: str, handler: Handler, on_dropped: Listener | None = None) -> Subscription:
        """Calls `handler` with each message, in order; `on_dropped` when it was too slow and messages were lost."""
        subscription = await self._client.subscribe(subject, cb=handler)
        if on_dropped is not None:
            self._dropped[subscription._id] = on_dropped
        return subscription

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Ends a subscription; one that is ended, or whose connection is closed, is ignored."""
        self._dropped.pop(subscription._id, None)
        try:
            await subscription.unsubscribe()
        except nats.errors.Error:
            return

    def jetstream(self) -> JetStreamContext:
        """Streams and key-value buckets, with a short timeout."""
        return self._client.jetstream(timeout=JETSTREAM_TIMEOUT_S)

    async def flush(self) -> None:
        """Returns when the server has seen all that was published and subscribed before.

        Raises:
            nats.errors.Error: NATS is away.
        """
        # The client's PING overtakes what its writer has not yet taken up, such as a subscription of just now. When it
        # is answered the writer has had its turn, and the second PING goes behind everything.
        await self._client.flush(timeout=FLUSH_TIMEOUT_S)
        await self._client.flush(timeout=FLUSH_TIMEOUT_S)

    async def close(self) -> None:
        """Sends what is buffered and disconnects. Idempotent."""
        self._reconnected.clear()
        self._disconnected.clear()
        if not self._client.is_closed:
            await self._client.close()

    async def _on_error(self, error: Exception) -> None:
        if isinstance(error, nats.errors.SlowConsumerError):
            listener = self._dropped.get(error.sid)
            _log.warning("too slow for subject %s: messages were dropped", error.subject)
            if listener is not None:
                listener()
            return
        if not isinstance(error, nats.errors.Error | OSError | TimeoutError):
            _log.error("a message handler failed", exc_info=error)
            return
        goes_on = "serving on what is known" if self._was_connected else "waiting for it before serving"
        self._log_once("NATS is away (%s); %s", str(error) or type(error).__name__, goes_on)

    async def _on_disconnected(self) -> None:
        if self._client.is_closed:
            return
        self._log_once("NATS is away (%s); serving on what is known", "connection closed")
        for listener in tuple(self._disconnected):
            listener()

    async def _on_reconnected(self) -> None:
        self._is_outage_logged = False
        _log.info("NATS is back")
        for listener in tuple(self._reconnected):
            listener()

    def _log_once(self, message: str, *values: object) -> None:
        if not self._is_outage_logged:
            self._is_outage_logged = True
            _log.warning(message, *values)
