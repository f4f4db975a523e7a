"""Who of those that should be heard each second has fallen silent. Pure.

A frozen process keeps its connections, and its record of membership for seconds. Times are those of one clock of the
caller's.
"""

from collections.abc import Mapping
from typing import Final

from forebay.role import Role

REPORTED_EVERY_S: Final = 1.0
"""At least so often a worker does."""
DEFAULT_SILENT_S: Final = 2.5
"""So long after its last report two of a worker's are missing."""


class Silence:
    """silent_s: after so long without a word a worker is silent; 0: nobody ever is."""

    def __init__(self, silent_s: float = DEFAULT_SILENT_S) -> None:
        self._silent_s = silent_s
        self._heard_s: dict[str, float] = {}
        self._anybody_s = 0.0  # when somebody was heard last

    def heard(self, worker_id: str, now_s: float) -> None:
        """It said something. Who could not be heard because nobody was, has its time from now on."""
        if now_s - self._anybody_s >= max(REPORTED_EVERY_S, self._silent_s - REPORTED_EVERY_S):
            self._heard_s = dict.fromkeys(self._heard_s, now_s)
        self._heard_s[worker_id] = self._anybody_s = now_s

    def silent(self, workers: Mapping[str, Role], now_s: float) -> frozenset[str]:
        """Who of these is. Forgets all others.

        Of a role of which nobody is heard, nobody is: then it is we who hear nothing, or no other could do its work.
        """
        self._heard_s = {one: self._heard_s.get(one, now_s) for one in workers}
        if not self._silent_s:
            return frozenset()
        quiet = {one for one, heard_s in self._heard_s.items() if now_s - heard_s >= self._silent_s}
        audible_roles = {role for one, role in workers.items() if one not in quiet}
        return frozenset(one for one in quiet if workers[one] in audible_roles)
