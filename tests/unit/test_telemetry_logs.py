"""Log lines: fields, both forms, trace ids, and no foreign exception's text."""

import asyncio
import json
import logging
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.errors import QueueFullError
from forebay.telemetry import configure, configure_logging, span
from forebay.telemetry.logs import LineFormatter

_log = logging.getLogger("forebay.some.module")


@pytest.fixture
def read_err(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Reads what the process has written to stderr since; our handlers go afterwards."""
    root = logging.getLogger()
    level = root.level
    yield lambda: capsys.readouterr().err
    logging.captureWarnings(capture=False)
    for handler in root.handlers[:]:
        if isinstance(handler.formatter, LineFormatter):
            root.removeHandler(handler)
    root.setLevel(level)


def fields(line: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in shlex.split(line))


def test_text_line_has_all_fields(read_err: Callable[[], str]) -> None:
    configure_logging("router", "info")
    _log.info('took "%s"', "a b", extra={"request_id": "r-1", "blocks": 3})
    line = fields(read_err())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "service": "router",
        "logger": "forebay.some.module",
        "message": 'took "a b"',
        "request_id": "r-1",
        "blocks": "3",
    }


def test_json_line_is_one_object(read_err: Callable[[], str]) -> None:
    configure_logging("router", "info", is_json=True)
    _log.warning("two\nlines", extra={"path": Path("a")})
    (line,) = read_err().splitlines()
    parsed = json.loads(line)
    assert (parsed["level"], parsed["message"], parsed["path"]) == ("warning", "two\nlines", "a")


def test_text_message_never_breaks_the_line(read_err: Callable[[], str]) -> None:
    configure_logging("router", "info")
    _log.info("first\nlevel=error forged")
    assert len(read_err().splitlines()) == 1


def test_level_hides_what_is_below(read_err: Callable[[], str]) -> None:
    configure_logging("router", "warning")
    _log.info("hidden")
    _log.warning("shown")
    assert [fields(line)["message"] for line in read_err().splitlines()] == ["shown"]


def test_trace_ids_inside_a_span_only(read_err: Callable[[], str]) -> None:
    configure_logging("router", "info", is_json=True)
    telemetry = configure("router", state_dir=None, attributes={})
    with span("generate") as current:
        _log.info("inside")
    _log.info("outside")
    telemetry.shutdown()
    inside, outside = map(json.loads, read_err().splitlines())
    context = current.get_span_context()
    assert (inside["trace_id"], inside["span_id"]) == (f"{context.trace_id:032x}", f"{context.span_id:016x}")
    assert "trace_id" not in outside


def _refuse(prompt: str) -> None:
    known: dict[str, int] = {}
    try:
        known[prompt]
    except KeyError as error:
        raise QueueFullError("too many wait") from error


def _fail(prompt: str) -> None:
    try:
        _refuse(prompt)
    except QueueFullError:
        int(prompt)


@pytest.mark.parametrize("is_json", [False, True])
def test_traceback_shows_frames_and_types_but_no_foreign_text(read_err: Callable[[], str], is_json: bool) -> None:
    configure_logging("router", "info", is_json=is_json)
    prompt = "a-" + "secret"  # the traceback quotes this file
    try:
        _fail(prompt)
    except ValueError:
        _log.exception("failed")
    written = read_err()
    exception = json.loads(written)["exception"] if is_json else written
    assert prompt not in written
    assert (
        exception.index("KeyError") < exception.index("QueueFullError: too many wait") < exception.rindex("ValueError")
    )
    assert "in _refuse" in exception


def test_operating_system_errors_keep_their_text(read_err: Callable[[], str], tmp_path: Path) -> None:
    configure_logging("router", "info")
    try:
        (tmp_path / "absent").read_bytes()
    except OSError:
        _log.exception("failed")
    assert "FileNotFoundError: [Errno 2] No such file" in read_err()


def test_exception_text_can_be_switched_on(read_err: Callable[[], str]) -> None:
    configure_logging("router", "info", exception_text=True)
    try:
        int("tell me")
    except ValueError:
        _log.exception("failed")
    assert "ValueError: invalid literal for int() with base 10: 'tell me'" in read_err()


async def int_of(text: str) -> int:
    return int(text)


def test_asyncio_report_loses_the_repr_of_the_task(read_err: Callable[[], str]) -> None:
    configure_logging("router", "info")

    async def fail_unseen() -> None:
        task = asyncio.create_task(int_of("prompt"))
        await asyncio.wait([task])
        del task

    asyncio.run(fail_unseen())
    written = read_err()
    assert "Task exception was never retrieved" in written
    assert "prompt" not in written


def test_warnings_become_lines(read_err: Callable[[], str]) -> None:
    configure_logging("router", "info")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        logging.captureWarnings(capture=True)
        warnings.warn("old ways", stacklevel=1)
    assert "old ways" in fields(read_err())["message"]
