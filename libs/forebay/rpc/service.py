"""The life of a service process: settings, telemetry, serve, drain, exit code.

`__main__.py` of every service is `run(name, Settings, serve)`; `serve` builds the objects and returns, drained, once
`stop` is set.
"""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, TypeVar

from pydantic import ValidationError

from forebay.errors import ForebayError
from forebay.rpc.settings import ServiceSettings
from forebay.telemetry import configure, configure_logging, spans

_log = logging.getLogger(__name__)

_TOLD_WHOLE: Final = frozenset({"value_error", "missing", "extra_forbidden"})
"""Kinds of usage errors whose message says all: what was given, or that nothing should or should not have been."""

S = TypeVar("S", bound=ServiceSettings)


def run(
    name: str,
    settings_type: type[S],
    serve: Callable[[S, asyncio.Event], Awaitable[None]],
    attributes: Callable[[S], Mapping[str, str]] = lambda _: {},
) -> None:
    """Runs `serve(settings, stop)` until SIGTERM or SIGINT sets `stop` and serve has drained; then exits the process.

    Exit codes: 0 drained, 1 defect, 2 cannot start (one line on stderr says what to do).
    """
    try:
        settings = settings_type(_cli_prog_name=f"python -m forebay.{name}")
    except ValidationError as error:
        sys.exit(_usage(name, error))
    configure_logging(name, settings.log_level, is_json=settings.log_format == "json")
    telemetry = configure(
        name, state_dir=settings.state_dir, attributes={spans.NODE_ID: settings.node_id, **attributes(settings)}
    )
    try:
        asyncio.run(_until_stopped(settings, serve))
    except ForebayError as error:
        _log.error("cannot start: %s", error.message)
        sys.exit(2)
    finally:
        telemetry.shutdown()


class _Stop(asyncio.Event):
    """Knows whether the service waits for it already: one that still starts has nothing to drain and is cancelled."""

    is_awaited = False

    async def wait(self) -> Literal[True]:
        self.is_awaited = True
        return await super().wait()


async def _until_stopped(settings: S, serve: Callable[[S, asyncio.Event], Awaitable[None]]) -> None:
    stop = _Stop()
    loop = asyncio.get_running_loop()
    # What is loaded by now lives as long as the process: the collector need not look at it again.
    gc.freeze()
    serving = asyncio.ensure_future(serve(settings, stop))

    def end() -> None:
        stop.set()
        if not stop.is_awaited:
            serving.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    try:
        await serving
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        _log.info("stopped before it served")


def _usage(name: str, error: ValidationError) -> int:
    for problem in error.errors(include_url=False):
        flag = "--" + ".".join(str(part) for part in problem["loc"]).replace("_", "-")
        message = problem["msg"].removeprefix("Value error, ")
        given = "" if problem["type"] in _TOLD_WHOLE else f", not {problem['input']!r}"
        sys.stderr.write(f"forebay {name}: {flag}: {message}{given}\n")
    return 2
