"""Which members of the fleet are kept from work: those that fell silent, and those that fail what they are given."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Final

from forebay.errors import Code, DrainingError, ForebayError, IsolatedError, NotAttachedError, NoWorkerError
from forebay.fleet.member import Member
from forebay.role import Role
from forebay.routing.breaker import Breakers
from forebay.routing.silence import Silence
from forebay.tasks import end_task

_LOOKED_EVERY_S: Final = 0.25
_WORKERS: Final = frozenset({Role.PREFILL, Role.DECODE})
_NOBODYS_FAULT: Final = (DrainingError, IsolatedError, NoWorkerError)


class Health:
    """members: the fleet as it is now. on_change: called when `silent` or `shut` may have changed."""

    def __init__(
        self, members: Callable[[], Mapping[str, Member]], on_change: Callable[[], None], silence: Silence
    ) -> None:
        self._members = members
        self._on_change = on_change
        self._silence = silence
        self._breakers = Breakers()
        self._task: asyncio.Task[None] | None = None
        self.silent: frozenset[str] = frozenset()
        """Workers that are to be taken for gone."""
        self.shut: frozenset[str] = frozenset()
        """Workers that get no further request."""

    def start(self) -> None:
        """Looks after them from now on. Needs a running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="health")

    async def close(self) -> None:
        """Stops. Idempotent."""
        if self._task is not None:
            await end_task(self._task)
            self._task = None

    def heard(self, worker_id: str) -> None:
        """A worker has reported its load."""
        self._silence.heard(worker_id, time.monotonic())
        if worker_id in self.silent:
            self._look()

    def begun(self, worker_id: str, request_id: str) -> None:
        """A request goes there."""
        if self._breakers.begun(worker_id, request_id, time.monotonic()):
            self._look()

    def succeeded(self, worker_id: str) -> None:
        """A request got a token there."""
        self._breakers.succeeded(worker_id)
        self._look_if_any()

    def failed(self, worker_id: str, request_id: str, error: ForebayError) -> None:
        """A request ended there with an error; not each says something of the worker."""
        is_its_doing = error.code in (Code.UNAVAILABLE, Code.INTERNAL) or isinstance(error, NotAttachedError)
        if is_its_doing and not isinstance(error, _NOBODYS_FAULT):
            self._breakers.failed(worker_id, request_id, time.monotonic())
            self._look()

    def ended(self, worker_id: str, request_id: str) -> None:
        """A request has left."""
        self._breakers.ended(worker_id, request_id)
        self._look_if_any()

    def _look_if_any(self) -> None:
        if self.shut:
            self._look()

    def _look(self) -> None:
        now_s, members = time.monotonic(), self._members()
        workers = {one.worker_id: one.role for one in members.values() if one.role in _WORKERS}
        self._breakers.keep(workers)
        before = self.silent, self.shut
        self.silent, self.shut = self._silence.silent(workers, now_s), self._breakers.shut(now_s)
        if (self.silent, self.shut) != before:
            self._on_change()

    async def _run(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_LOOKED_EVERY_S)
