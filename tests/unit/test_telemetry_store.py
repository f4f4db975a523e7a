"""Reading stored traces: by prefix, the recent ones, and precise refusals."""

import sqlite3
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, Status, StatusCode

from forebay.telemetry.span_schema import SCHEMA_VERSION, store_path
from forebay.telemetry.span_store import (
    SpanStore,
    SpanStoreError,
    TraceNotFoundError,
    TracePrefixError,
    TraceSummary,
)
from forebay.telemetry.sqlite_exporter import SqliteSpanExporter

_FIRST = 0xAAAA << 112
_SECOND = 0xAAAB << 112


def span(
    trace_id: int, span_id: int, parent_id: int | None, times_ns: tuple[int, int], *, failed: bool = False
) -> ReadableSpan:
    return ReadableSpan(
        f"span-{span_id}",
        SpanContext(trace_id, span_id, is_remote=False),
        parent=None if parent_id is None else SpanContext(trace_id, parent_id, is_remote=True),
        resource=Resource({"service.name": f"service-{span_id}"}),
        start_time=times_ns[0],
        end_time=times_ns[1],
        status=Status(StatusCode.ERROR if failed else StatusCode.UNSET),
    )


@pytest.fixture
def store(tmp_path: Path) -> SpanStore:
    exporter = SqliteSpanExporter(store_path(tmp_path))
    # Children end first and so are written first; the first trace's child started before its root, as clocks allow.
    exporter.export([span(_FIRST, 2, 1, (90, 300), failed=True), span(_FIRST, 1, None, (100, 400))])
    exporter.export([span(_SECOND, 4, 3, (1_000, 1_100)), span(_SECOND, 5, 3, (1_050, 1_200))])
    exporter.shutdown()
    return SpanStore(store_path(tmp_path))


def test_trace_by_any_unique_prefix(store: SpanStore) -> None:
    for text in ("aaaa", "AAAA", f" {_FIRST:032x}\n"):
        assert [span.name for span in store.trace(text)] == ["span-2", "span-1"]
    assert [span.name for span in store.trace("aaab")] == ["span-4", "span-5"]


def test_ambiguous_prefix_names_the_candidates(store: SpanStore) -> None:
    with pytest.raises(TracePrefixError, match=f"{_FIRST:032x}, {_SECOND:032x}") as caught:
        store.trace("aaa")
    assert caught.value.field == "trace_id"


@pytest.mark.parametrize("text", ["", "xyz", "aaaa%", "a" * 33])
def test_prefix_must_be_hex(store: SpanStore, text: str) -> None:
    with pytest.raises(TracePrefixError, match="1 to 32 hex digits"):
        store.trace(text)


def test_unknown_trace(store: SpanStore) -> None:
    with pytest.raises(TraceNotFoundError, match="no trace bbbb"):
        store.trace("bbbb")


def test_recent_traces_latest_first(store: SpanStore) -> None:
    rootless = TraceSummary(f"{_SECOND:032x}", "span-4", "service-4", 1_000, 1_200, span_count=2, error_count=0)
    rooted = TraceSummary(f"{_FIRST:032x}", "span-1", "service-1", 90, 400, span_count=2, error_count=1)
    assert store.recent(10) == [rootless, rooted]
    assert store.recent(1) == [rootless]


def test_readers_and_writers_do_not_wait_for_each_other(store: SpanStore, tmp_path: Path) -> None:
    reader = sqlite3.connect(store_path(tmp_path), isolation_level=None)
    reader.execute("BEGIN")
    before = reader.execute("SELECT COUNT(*) FROM spans").fetchone()
    exporter = SqliteSpanExporter(store_path(tmp_path), busy_timeout_s=0)
    exporter.export([span(0xB << 124, 6, None, (1, 2))])
    assert [one.name for one in store.trace("b")] == ["span-6"]
    assert reader.execute("SELECT COUNT(*) FROM spans").fetchone() == before
    reader.close()
    exporter.shutdown()


def test_absent_file_is_not_made(tmp_path: Path) -> None:
    path = store_path(tmp_path)
    with pytest.raises(SpanStoreError, match="no local spans at"):
        SpanStore(path).recent(1)
    assert not path.exists()


def test_file_without_spans_yet(tmp_path: Path) -> None:
    path = tmp_path / "spans.sqlite"
    path.touch()
    with pytest.raises(SpanStoreError, match="no spans have been written"):
        SpanStore(path).trace("a")


def test_other_schema_is_named(store: SpanStore, tmp_path: Path) -> None:
    with sqlite3.connect(store_path(tmp_path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(SpanStoreError, match=f"has schema {SCHEMA_VERSION + 1}, this Forebay reads {SCHEMA_VERSION}"):
        store.trace("aaaa")


def test_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "spans.sqlite"
    path.write_bytes(b"this is no database, " * 100)
    with pytest.raises(SpanStoreError, match="cannot be read"):
        SpanStore(path).recent(1)
