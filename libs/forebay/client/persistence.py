"""When a request that failed is asked of another router, and when its caller is told. Pure."""

from typing import Final

from forebay.errors import Code, DrainingError, ForebayError, NoWorkerError, RemoteError

MOST_TRIES: Final = 8
FIRST_DELAY_S: Final = 0.1
MOST_DELAY_S: Final = 1.0

_LOST_CODES: Final = frozenset({Code.UNAVAILABLE, Code.CANCELLED})


class Persistence:
    """The failures of one request since a token last came."""

    def __init__(self, router_count: int) -> None:
        self._router_count = router_count
        self._failures = 0

    def progressed(self) -> None:
        """A token came."""
        self._failures = 0

    def delay_s(self, error: ForebayError, *, has_begun: bool) -> float | None:
        """Seconds until the next router is asked: zero while there is one that has not failed yet.

        A request that no router has accepted is asked once of each; one that was accepted (`has_begun`) is asked
        MOST_TRIES times, since routers that were lost come again.
        None: its caller is to be told.
        """
        self._failures += 1
        has_other = self._failures < self._router_count
        if not (is_lost(error) or (isinstance(error, NoWorkerError) and has_other)):
            return None
        if has_other:
            return 0.0
        if not has_begun or self._failures >= MOST_TRIES:
            return None
        return min(MOST_DELAY_S, FIRST_DELAY_S * 2.0 ** (self._failures - self._router_count))


def is_lost(error: ForebayError) -> bool:
    """Whether this tells of a router that is gone or going, and not of the request."""
    # What the router itself says of a request has a reason.
    return isinstance(error, DrainingError) or (type(error) is RemoteError and error.code in _LOST_CODES)
