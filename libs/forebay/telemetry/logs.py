"""Log lines of a process: time, level, service, logger, message, the caller's `extra`, and trace ids inside a span.

Knows the standard library's logging only. The text of exceptions that are not ours is left out, because it may quote a
prompt; the type and the frames stay.
"""

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from opentelemetry.trace import get_current_span

from forebay.errors import ForebayError

_BUILT_IN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_TEXT_IS_SAFE = (ForebayError, OSError, ImportError, MemoryError)
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/@+,[]()<>")


def configure_logging(service: str, level: str, *, is_json: bool = False, exception_text: bool = False) -> None:
    """Sends all log records of this process to stderr, one line each; in text form tracebacks follow it.

    Args:
        service: name in every line.
        level: least severe level shown: "debug", "info", "warning" or "error".
        is_json: one JSON object per line instead of key=value.
        exception_text: also show the text of exceptions that are not ours. It may quote prompts.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(service, _as_json if is_json else _as_text, exception_text=exception_text))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


class LineFormatter(logging.Formatter):
    """Turns a record into its fields, and the fields into a line."""

    def __init__(self, service: str, render: Callable[[dict[str, Any]], str], *, exception_text: bool = False) -> None:
        super().__init__()
        self._service = service
        self._render = render
        self._exception_text = exception_text

    def format(self, record: logging.LogRecord) -> str:
        """One line, or with an exception in text form several."""
        fields: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": self._message(record),
        }
        fields |= {key: value for key, value in vars(record).items() if key not in _BUILT_IN}
        context = get_current_span().get_span_context()
        if context.is_valid:
            fields |= {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        if record.exc_info and record.exc_info[1] is not None:
            fields["exception"] = self._traceback(record.exc_info[1])
        return self._render(fields)

    def _message(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        # asyncio writes the repr of the failed task, with the exception's text, on the lines after the first.
        return message if self._exception_text or record.name != "asyncio" else message.partition("\n")[0]

    def _traceback(self, error: BaseException) -> str:
        """The frames of `error` and of what led to it, first cause first."""
        parts: list[str] = []
        seen: set[int] = set()
        current: BaseException | None = error
        while current is not None and id(current) not in seen:
            seen.add(id(current))
            frames = "".join(traceback.format_tb(current.__traceback__))
            parts.append(f"{frames}{type(current).__name__}{self._text(current)}")
            current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
        return "\nwhich led to:\n".join(reversed(parts))

    def _text(self, error: BaseException) -> str:
        return f": {error}" if self._exception_text or isinstance(error, _TEXT_IS_SAFE) else ""


def _as_json(fields: dict[str, Any]) -> str:
    return json.dumps(fields, default=str, ensure_ascii=False)


def _as_text(fields: dict[str, Any]) -> str:
    exception = fields.pop("exception", None)
    line = " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())
    return line if exception is None else f"{line}\n{exception}"


def _quoted(value: object) -> str:
    text = str(value)
    return text if text and _PLAIN.issuperset(text) else json.dumps(text, ensure_ascii=False)
