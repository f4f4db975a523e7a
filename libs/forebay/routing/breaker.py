"""A circuit breaker for each worker: one that fails request after request gets one probe at a time, nothing else. Pure.

Closed: requests go there. Open, after LEAST_FAILURES in a row: none do, for a while. Half-open: the next request is the
probe, and none goes there beside it; if that gets a token the breaker closes, if it fails it is open for twice as long.
Times are those of one clock of the caller's.
"""

from collections.abc import Container
from dataclasses import dataclass
from typing import Final

LEAST_FAILURES: Final = 3
FIRST_OPEN_S: Final = 1.0
MOST_OPEN_S: Final = 30.0


@dataclass(slots=True)
class _State:
    """opens_until_s: None while it is closed. probe: the request that tries it."""

    failures: int = 0
    open_s: float = FIRST_OPEN_S
    opens_until_s: float | None = None
    probe: str | None = None


class Breakers:
    """Keeps a state only of workers that have failed since they last succeeded."""

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def begun(self, worker_id: str, request_id: str, now_s: float) -> bool:
        """A request goes to a worker. Whether it is the probe of one that was half-open, and is shut now."""
        state = self._states.get(worker_id)
        is_probe = state is not None and state.probe is None and _is_half_open(state, now_s)
        if state is not None and is_probe:
            state.probe = request_id
        return is_probe

    def succeeded(self, worker_id: str) -> None:
        """A request got a token there."""
        self._states.pop(worker_id, None)

    def failed(self, worker_id: str, request_id: str, now_s: float) -> None:
        """A request failed there, by the worker's doing. Those that were there before it opened say nothing new."""
        state = self._states.setdefault(worker_id, _State())
        if state.opens_until_s is None:
            state.failures += 1
            if state.failures >= LEAST_FAILURES:
                state.opens_until_s = now_s + state.open_s
        elif state.probe == request_id:
            state.probe = None
            state.open_s = min(MOST_OPEN_S, 2.0 * state.open_s)
            state.opens_until_s = now_s + state.open_s

    def ended(self, worker_id: str, request_id: str) -> None:
        """A request has left. A probe that has told nothing is given to another."""
        state = self._states.get(worker_id)
        if state is not None and state.probe == request_id:
            state.probe = None

    def shut(self, now_s: float) -> frozenset[str]:
        """Workers that no request is to go to now."""
        return frozenset(one for one, state in self._states.items() if _is_shut(state, now_s))

    def keep(self, worker_ids: Container[str]) -> None:
        """Forgets every worker that is not one of these."""
        for worker_id in [known for known in self._states if known not in worker_ids]:
            del self._states[worker_id]


def _is_half_open(state: _State, now_s: float) -> bool:
    return state.opens_until_s is not None and now_s >= state.opens_until_s


def _is_shut(state: _State, now_s: float) -> bool:
    return state.opens_until_s is not None and (now_s < state.opens_until_s or state.probe is not None)
