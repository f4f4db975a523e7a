"""Spans into the shared SQLite file: round trip, several writers, its bound, and a file that does not take them."""

import logging
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode

from forebay.telemetry.guarded_exporter import GuardedExporter
from forebay.telemetry.span_schema import SCHEMA_VERSION
from forebay.telemetry.span_store import SpanStore, StoredSpan
from forebay.telemetry.sqlite_exporter import SqliteSpanExporter

_WRITER = """
import sys
from pathlib import Path
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext
from forebay.telemetry.sqlite_exporter import SqliteSpanExporter
writer = int(sys.argv[2])
exporter = SqliteSpanExporter(Path(sys.argv[1]), busy_timeout_s=30)
print("ready", flush=True)
sys.stdin.readline()
for batch in range(1, 41):
    trace_id = writer << 64 | batch
    exporter.export([ReadableSpan("work", SpanContext(trace_id, span_id, False)) for span_id in range(1, 11)])
exporter.shutdown()
"""

# A file may not grow beyond 96 KiB: to SQLite, a full disk.
_WRITER_ON_FULL_DISK = """
import resource, sys
from pathlib import Path
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext
from forebay.telemetry.guarded_exporter import GuardedExporter
from forebay.telemetry.sqlite_exporter import SqliteSpanExporter
resource.setrlimit(resource.RLIMIT_FSIZE, (98304, resource.RLIM_INFINITY))
exporter = GuardedExporter(SqliteSpanExporter(Path(sys.argv[1])), "disk")
def send(trace_id, characters):
    exporter.export([ReadableSpan("x" * characters, SpanContext(trace_id, 1, False))])
send(1, 10)
send(2, 200_000)
lost = exporter.lost_spans_count
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
send(3, 10)
print(lost, exporter.lost_spans_count)
"""


def span(trace_id: int, span_id: int, *, start_ns: int = 0) -> ReadableSpan:
    context = SpanContext(trace_id, span_id, is_remote=False)
    return ReadableSpan("work", context, start_time=start_ns, end_time=start_ns + 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spans.sqlite"


@pytest.fixture
def exporter(path: Path) -> Iterator[SqliteSpanExporter]:
    exporter = SqliteSpanExporter(path, busy_timeout_s=0)
    yield exporter
    exporter.shutdown()


def trace_ids(path: Path) -> list[int]:
    """Trace id of every stored span, in the order of writing."""
    with sqlite3.connect(path) as connection:
        return [int(row[0], 16) for row in connection.execute("SELECT trace_id FROM spans ORDER BY rowid")]


def test_what_is_written_is_read(exporter: SqliteSpanExporter, path: Path) -> None:
    trace_id = 0xABC << 116
    written = ReadableSpan(
        "kv.acquire",
        SpanContext(trace_id, 2, is_remote=False),
        parent=SpanContext(trace_id, 1, is_remote=True),
        resource=Resource({"service.name": "kvcache", "forebay.node_id": "n1", "host.name": "h"}),
        attributes={"forebay.kv.blocks": 3, "forebay.ttft_s": 0.5, "finish": ("stop", "length"), "ok": True},
        kind=SpanKind.SERVER,
        status=Status(StatusCode.ERROR, "never stored"),
        start_time=10,
        end_time=25,
    )
    assert exporter.export([written]) is SpanExportResult.SUCCESS
    assert SpanStore(path).trace("abc") == [
        StoredSpan(
            trace_id=f"{trace_id:032x}",
            span_id=f"{2:016x}",
            parent_span_id=f"{1:016x}",
            name="kv.acquire",
            service="kvcache",
            kind="SERVER",
            start_ns=10,
            end_ns=25,
            status="ERROR",
            attributes={
                "forebay.node_id": "n1",
                "forebay.kv.blocks": 3,
                "forebay.ttft_s": 0.5,
                "finish": ["stop", "length"],
                "ok": True,
            },
        )
    ]


def test_processes_write_at_once(path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("go\n", timeout=60)
    assert [writer.returncode for writer in writers] == [0, 0]
    expected = [number << 64 | batch for number in (1, 2) for batch in range(1, 41) for _ in range(10)]
    assert sorted(trace_ids(path)) == expected


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), max_size=12), limit_count=st.integers(10, 60))
def test_limit_keeps_whole_newest_traces(sizes: list[int], limit_count: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "spans.sqlite"
        exporter = SqliteSpanExporter(path, limit_count=limit_count)
        for trace_id, size in enumerate(sizes, start=1):
            exporter.export([span(trace_id, span_id, start_ns=trace_id) for span_id in range(1, size + 1)])
            assert len(trace_ids(path)) <= limit_count
        kept = trace_ids(path) if sizes else []
        exporter.shutdown()
    newest = range(min(kept, default=len(sizes) + 1), len(sizes) + 1)
    assert kept == [trace_id for trace_id in newest for _ in range(sizes[trace_id - 1])]
    if sum(sizes) <= limit_count:
        assert len(kept) == sum(sizes)


def test_pruning_takes_no_more_than_it_must(path: Path) -> None:
    exporter = SqliteSpanExporter(path, limit_count=100)
    for trace_id in range(1, 102):
        exporter.export([span(trace_id, 1, start_ns=trace_id)])
    exporter.shutdown()
    assert trace_ids(path) == list(range(12, 102))


def test_locked_file_costs_its_spans_once_logged(
    exporter: SqliteSpanExporter, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guard = GuardedExporter(exporter, "the store")
    guard.export([span(1, 1)])
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with caplog.at_level(logging.WARNING):
        results = [guard.export([span(2, 1), span(2, 2)]), guard.export([span(3, 1)])]
        other.execute("COMMIT")
        results.append(guard.export([span(4, 1)]))
    other.close()
    assert results == [SpanExportResult.FAILURE, SpanExportResult.FAILURE, SpanExportResult.SUCCESS]
    assert guard.lost_spans_count == 3
    assert trace_ids(path) == [1, 4]
    failed, recovered = caplog.messages
    assert "do not reach the store" in failed
    assert "locked" in failed
    assert "reach the store again; 3 were lost" in recovered


def test_full_disk_costs_its_spans_and_no_more(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WRITER_ON_FULL_DISK, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["1", "1"]
    assert trace_ids(path) == [1, 3]


def _damage(path: Path) -> None:
    path.write_bytes(b"this is no database, " * 100)


def _make_newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()


def _make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("spoil", [_damage, _make_newer, _make_folder])
def test_unusable_file_is_left_alone(exporter: SqliteSpanExporter, path: Path, spoil: object) -> None:
    assert callable(spoil)
    path.parent.mkdir()
    spoil(path)
    before = path.read_bytes() if path.is_file() else None
    guard = GuardedExporter(exporter, "the store")
    assert guard.export([span(1, 1)]) is SpanExportResult.FAILURE
    assert guard.lost_spans_count == 1
    assert (path.read_bytes() if path.is_file() else None) == before


def test_older_schema_is_replaced(exporter: SqliteSpanExporter, path: Path) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE spans (something_else TEXT)")
    assert exporter.export([span(1, 1)]) is SpanExportResult.SUCCESS
    assert trace_ids(path) == [1]


class _Sink:
    """An exporter that answers as told."""

    def __init__(self, answers: Iterable[SpanExportResult]) -> None:
        self._answers = iter(answers)
        self.shutdown_count = 0

    def export(self, _: object) -> SpanExportResult:
        return next(self._answers)

    def shutdown(self) -> None:
        self.shutdown_count += 1

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True


def test_refused_batch_counts_as_lost() -> None:
    guard = GuardedExporter(_Sink([SpanExportResult.FAILURE]), "sink")  # type: ignore[arg-type]  # same methods
    assert guard.export([span(1, 1), span(1, 2)]) is SpanExportResult.FAILURE
    assert guard.lost_spans_count == 2


def test_after_shutdown_nothing_is_sent() -> None:
    sink = _Sink([])
    guard = GuardedExporter(sink, "sink")  # type: ignore[arg-type]  # same methods
    guard.shutdown()
    guard.shutdown()
    assert sink.shutdown_count == 1
    assert guard.export([span(1, 1)]) is SpanExportResult.FAILURE
    assert guard.lost_spans_count == 1
