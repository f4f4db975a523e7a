"""A background thread with one event loop, on which plain code runs coroutines."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

_Result = TypeVar("_Result")


class _Call(Generic[_Result]):
    """One coroutine on the loop; all but `result` belongs to the loop's thread."""

    def __init__(self, start: Callable[[], Coroutine[Any, Any, _Result]]) -> None:
        self.result: Future[_Result] = Future()
        self._start = start
        self._task: asyncio.Task[_Result] | None = None

    def begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._invoke())
        self._task.add_done_callback(self._tell)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _invoke(self) -> _Result:
        return await self._start()

    def _tell(self, task: asyncio.Task[_Result]) -> None:
        if task.cancelled():
            self.result.cancel()
            self.result.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self.result.set_exception(error)
        else:
            self.result.set_result(task.result())


class LoopThread:
    """Starts at once. The caller's context variables (the active trace) go along with each coroutine."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="forebay-client", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether `stop` has not been called."""
        return not self._loop.is_closed()

    def run(self, start: Callable[[], Coroutine[Any, Any, _Result]]) -> _Result:
        """Waits for the result of the coroutine that `start` makes. Ctrl-C at any moment cancels it.

        It is made on the loop's thread: an interrupt between making and starting it here would leave it behind.
        """
        if self._loop.is_closed():
            raise RuntimeError("the client is closed")
        call = _Call(start)
        try:
            self._loop.call_soon_threadsafe(call.begin)
            return call.result.result()
        except BaseException:
            self.post(call.cancel)
            raise

    def post(self, callback: Callable[[], None]) -> None:
        """Runs the callback soon; does nothing once the loop is closed."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)

    def stop(self) -> None:
        """Ends the thread after what was posted before. Idempotent."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
