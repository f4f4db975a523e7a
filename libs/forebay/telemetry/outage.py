"""A destination that may be away: what it costs is counted, and said once, and once more when it is over."""

import logging

_log = logging.getLogger(__name__)


class Outage:
    """What `destination` has lost of `things` so far."""

    def __init__(self, things: str, destination: str) -> None:
        self._things = things
        self._destination = destination
        self._is_on = False
        self.lost_count = 0

    def fail(self, count: int, reason: str) -> None:
        """So many did not arrive."""
        self.lost_count += count
        if not self._is_on:
            self._is_on = True
            _log.warning("%s do not reach %s (%s); serving goes on", self._things, self._destination, reason)

    def succeed(self) -> None:
        """Some arrived."""
        if self._is_on:
            self._is_on = False
            _log.warning("%s reach %s again; %d were lost so far", self._things, self._destination, self.lost_count)
