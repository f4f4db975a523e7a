"""The requests that run now, by id, so that they can be ended from elsewhere and no id runs twice."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from forebay.errors import (
    RETRY_AFTER_S,
    DrainingError,
    DuplicateRequestError,
    ForebayError,
    RequestCancelledError,
    UnknownRequestError,
)

End = Callable[[ForebayError], None]
"""Ends a request early; its caller hears the error."""


class RunningRequests:
    """Request id → what ends it."""

    def __init__(self) -> None:
        self._ends: dict[str, End] = {}
        self._is_draining = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def __len__(self) -> int:
        return len(self._ends)

    @contextmanager
    def registered(self, request_id: str, end: End, *, takes_over: bool = False) -> Iterator[None]:
        """The request runs inside the block. takes_over: one of this id that runs is ended.

        Raises:
            DuplicateRequestError: one of this id already runs.
            DrainingError: no new request is welcome.
        """
        if self._is_draining:
            raise DrainingError("this router is stopping", retry_after_s=RETRY_AFTER_S)
        if request_id in self._ends:
            if not takes_over:
                raise DuplicateRequestError("a request with this id is running", field="request_id")
            self._ends[request_id](RequestCancelledError("the request was resumed by another call"))
        self._ends[request_id] = end
        self._is_idle.clear()
        try:
            yield
        finally:
            if self._ends.get(request_id) is end:  # else another call has taken it over
                del self._ends[request_id]
            if not self._ends:
                self._is_idle.set()

    def drain(self) -> None:
        """From now on new requests are refused."""
        self._is_draining = True

    async def wait_idle(self) -> None:
        """Returns when no request runs."""
        await self._is_idle.wait()

    def end_all(self, waited_s: float) -> None:
        """Ends what still runs after so many seconds of draining."""
        error = DrainingError(
            f"the router was stopped and the answer was not complete {waited_s:g} s later", retry_after_s=RETRY_AFTER_S
        )
        for end in self._ends.values():
            end(error)

    def cancel(self, request_id: str) -> None:
        """Ends a request. Raises UnknownRequestError when none of this id runs."""
        if request_id not in self._ends:
            raise UnknownRequestError("no request of this id is running here", field="request_id")
        self._ends[request_id](RequestCancelledError("the request was ended by Cancel"))
