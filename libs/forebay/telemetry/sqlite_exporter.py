"""Writes spans into one SQLite file that all processes of a node share.

Knows the table and its bound; not when it is called (the batch processor's thread) nor what becomes of its errors
(`GuardedExporter`). A connection that failed is dropped, and the next batch opens a new one.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from opentelemetry.sdk.resources import SERVICE_NAME
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from forebay.telemetry.span_schema import COLUMNS, CREATE, SCHEMA_VERSION, Row

_INSERT = f"INSERT INTO spans ({COLUMNS}) VALUES ({', '.join('?' * len(COLUMNS.split(', ')))})"  # noqa: S608  # constants

# Oldest traces first, by their last span, until at least :excess spans are gone.
_DELETE_OLDEST = """
DELETE FROM spans WHERE trace_id IN (
  SELECT trace_id FROM (
    SELECT trace_id, SUM(span_count) OVER (ORDER BY last_ns, trace_id) - span_count AS older_count FROM (
      SELECT trace_id, COUNT(*) AS span_count, MAX(end_ns) AS last_ns FROM spans GROUP BY trace_id))
  WHERE older_count < :excess)
"""


class SqliteSpanExporter(SpanExporter):
    """One writer of the shared file. Thread-safe.

    Args:
        path: the file; it and its folder are made when the first span arrives.
        limit_count: spans kept, of all processes together; beyond it the oldest tenth goes, whole traces at a time.
            Writers look each time they have added a hundredth of it, so the file may hold that much more per process.
        busy_timeout_s: how long a batch waits for other writers.
    """

    def __init__(self, path: Path, *, limit_count: int = 200_000, busy_timeout_s: float = 2.0) -> None:
        self._path = path
        self._limit_count = limit_count
        self._check_every_count = max(1, limit_count // 100)
        self._busy_timeout_s = busy_timeout_s
        self._connection: sqlite3.Connection | None = None
        self._unchecked_count = self._check_every_count
        self._lock = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Writes all of them or none.

        Raises:
            sqlite3.Error: the file is locked, full, damaged, or of a newer Forebay.
            OSError: the folder cannot be made.
        """
        rows = [_row(span) for span in spans]
        with self._lock:
            connection = self._connection or _opened(self._path, self._busy_timeout_s)
            self._connection = connection
            try:
                self._write(connection, rows)
            except sqlite3.Error:
                self._close()
                raise
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Closes the file; a later export opens it again."""
        with self._lock:
            self._close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Nothing is held back here."""
        return True

    def _write(self, connection: sqlite3.Connection, rows: list[Row]) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_INSERT, rows)
        self._unchecked_count += len(rows)
        if self._unchecked_count >= self._check_every_count:
            self._prune(connection)
        connection.execute("COMMIT")

    def _prune(self, connection: sqlite3.Connection) -> None:
        (count,) = connection.execute("SELECT COUNT(*) FROM spans").fetchone()
        if count > self._limit_count:
            connection.execute(_DELETE_OLDEST, {"excess": count - self._limit_count * 9 // 10})
        self._unchecked_count = 0

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None


def _opened(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    try:
        _enter_wal(connection, busy_timeout_s)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 4194304")  # pruning writes a long journal; it shrinks again
        _migrate(connection)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _enter_wal(connection: sqlite3.Connection, timeout_s: float) -> None:
    """Several processes start at once, and SQLite's own waiting does not cover the change of journal mode."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _migrate(connection: sqlite3.Connection) -> None:
    # IMMEDIATE: a transaction that has read and then wants to write does not wait for another writer, it fails.
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise sqlite3.DatabaseError(f"schema {version} is newer than ours, {SCHEMA_VERSION}")
    if version < SCHEMA_VERSION:
        # Spans are worth less than a migration: an older Forebay's are dropped.
        connection.execute("DROP TABLE IF EXISTS spans")
        for statement in CREATE:
            connection.execute(statement)
    connection.execute("COMMIT")


def _row(span: ReadableSpan) -> Row:
    resource = span.resource.attributes
    # What tells processes apart is said once per process; each stored span carries it, so that it can be read alone.
    attributes = {key: value for key, value in resource.items() if key.startswith("forebay.")}
    attributes |= span.attributes or {}
    return (
        f"{span.context.trace_id:032x}",
        f"{span.context.span_id:016x}",
        f"{span.parent.span_id:016x}" if span.parent else None,
        span.name,
        str(resource.get(SERVICE_NAME, "unknown")),
        span.kind.name,
        span.start_time or 0,
        span.end_time or 0,
        span.status.status_code.name,
        json.dumps(attributes, default=str),
    )
