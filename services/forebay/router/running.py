"""The requests that run now, by id, so that they can be ended from elsewhere and no id runs twice."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from forebay.errors import DuplicateRequestError, UnknownRequestError


class RunningRequests:
    """Request id → what ends it."""

    def __init__(self) -> None:
        self._cancels: dict[str, Callable[[], None]] = {}

    def __len__(self) -> int:
        return len(self._cancels)

    @contextmanager
    def registered(self, request_id: str, cancel: Callable[[], None]) -> Iterator[None]:
        """The request runs inside the block. Raises DuplicateRequestError when one of this id already does."""
        if request_id in self._cancels:
            raise DuplicateRequestError("a request with this id is running", field="request_id")
        self._cancels[request_id] = cancel
        try:
            yield
        finally:
            del self._cancels[request_id]

    def cancel(self, request_id: str) -> None:
        """Ends a request. Raises UnknownRequestError when none of this id runs."""
        if request_id not in self._cancels:
            raise UnknownRequestError("no request of this id is running here", field="request_id")
        self._cancels[request_id]()
