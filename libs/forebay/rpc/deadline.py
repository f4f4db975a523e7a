"""What is left of the deadline of the request being served.

Python gRPC does not pass deadlines on; the server interceptor sets this, the client interceptor reads it.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar, Token

from forebay.errors import DeadlineExceededError

_deadline_s: ContextVar[float | None] = ContextVar("forebay_deadline_s", default=None)


def remaining_s() -> float | None:
    """Seconds left, >= 0; None when the request has no deadline."""
    deadline_s = _deadline_s.get()
    return None if deadline_s is None else max(0.0, deadline_s - time.monotonic())


@contextmanager
def limited_to(seconds: float | None) -> Iterator[None]:
    """Inside the block the request has so many seconds left."""
    token = set_limit(seconds)
    try:
        yield
    finally:
        reset_limit(token)


def set_limit(seconds: float | None) -> Token[float | None]:
    """From now on the request has so many seconds left, until `reset_limit`."""
    return _deadline_s.set(None if seconds is None else time.monotonic() + seconds)


def reset_limit(token: Token[float | None]) -> None:
    """As it was before `set_limit`, in the same context."""
    _deadline_s.reset(token)


@asynccontextmanager
async def ended_after(seconds: float | None, message: str) -> AsyncIterator[None]:
    """Ends what runs inside the block after so many seconds, also a write that nobody reads.

    message: of the error. Errors: DeadlineExceededError.
    """
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceededError(message) from None


def shorter(timeout_s: float | None, default_s: float) -> float:
    """The timeout for an outgoing call: its own (else the default), but never more than what is left."""
    wanted_s = default_s if timeout_s is None else timeout_s
    left_s = remaining_s()
    return wanted_s if left_s is None else min(wanted_s, left_s)
