"""Reads the spans that the processes of this node have written, while they go on writing.

Knows the table, not how a trace is shown.
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.errors import Code, ForebayError
from forebay.telemetry.span_schema import COLUMNS, SCHEMA_VERSION, Row

_TRACE_ID_CHARACTERS = 32
_LISTED_CANDIDATES = 5

_SPANS_OF_TRACE = f"SELECT {COLUMNS} FROM spans WHERE trace_id = ? ORDER BY start_ns, span_id"  # noqa: S608  # constants
# 'g' is the first character after all hex digits.
_TRACE_IDS_BY_PREFIX = (
    "SELECT DISTINCT trace_id FROM spans WHERE trace_id >= :prefix AND trace_id < :prefix || 'g' LIMIT :limit"
)
# A trace is named by its root, or by its first span when the root is not stored.
_RECENT = """
WITH recent AS (
  SELECT trace_id, MIN(start_ns) AS first_ns, MAX(end_ns) AS last_ns, COUNT(*) AS span_count
  FROM spans GROUP BY trace_id ORDER BY first_ns DESC LIMIT ?)
SELECT recent.trace_id, head.name, head.service, first_ns, last_ns, span_count,
  (SELECT COUNT(*) FROM spans WHERE spans.trace_id = recent.trace_id AND status = 'ERROR')
FROM recent JOIN spans AS head ON head.rowid = (
  SELECT rowid FROM spans WHERE spans.trace_id = recent.trace_id
  ORDER BY parent_span_id IS NOT NULL, start_ns LIMIT 1)
ORDER BY first_ns DESC
"""


class TraceNotFoundError(ForebayError):
    """No span of such a trace is stored."""

    code, reason = Code.NOT_FOUND, "UNKNOWN_TRACE"


class TracePrefixError(ForebayError):
    """The prefix is not one, or fits several traces."""

    code, reason = Code.INVALID_ARGUMENT, "TRACE_PREFIX"


class SpanStoreError(ForebayError):
    """There is no store, or it cannot be read."""

    code, reason = Code.FAILED_PRECONDITION, "SPAN_STORE"


@dataclass(frozen=True, slots=True)
class StoredSpan:
    """A span as it was written.

    `start_ns` and `end_ns` are nanoseconds since the epoch; ids are lower-case hex; `status` is UNSET, OK or ERROR;
    `kind` is INTERNAL, SERVER, CLIENT, PRODUCER or CONSUMER. `attributes` include the `forebay.*` ones of the process.
    """

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    service: str
    kind: str
    start_ns: int
    end_ns: int
    status: str
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A trace in a list: `name` and `service` are those of its root, else of its first span; times as in StoredSpan."""

    trace_id: str
    name: str
    service: str
    start_ns: int
    end_ns: int
    span_count: int
    error_count: int


class SpanStore:
    """The spans of one node.

    Args:
        path: the file, see `span_schema.store_path`.

    Raises:
        SpanStoreError: by every method, when the file is absent, empty or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def trace(self, id_or_prefix: str) -> list[StoredSpan]:
        """All stored spans of one trace, by start.

        Spans arrive about half a second after their end, so the last ones of a trace that just ended may be missing.

        Args:
            id_or_prefix: trace id, or as many of its first hex digits as fit no other trace.

        Raises:
            TraceNotFoundError: no stored trace begins so.
            TracePrefixError: it is no hex number of 1 to 32 digits, or several traces begin so.
        """
        prefix = id_or_prefix.strip().lower()
        if not 1 <= len(prefix) <= _TRACE_ID_CHARACTERS or set(prefix) - set("0123456789abcdef"):
            raise TracePrefixError(f"a trace id has 1 to {_TRACE_ID_CHARACTERS} hex digits", field="trace_id")
        with self._reading() as connection:
            trace_id = self._only(connection, prefix)
            return [_span(row) for row in connection.execute(_SPANS_OF_TRACE, (trace_id,))]

    def recent(self, limit: int) -> list[TraceSummary]:
        """The traces that began last, latest first; at most `limit`."""
        with self._reading() as connection:
            return [TraceSummary(*row) for row in connection.execute(_RECENT, (limit,))]

    def _only(self, connection: sqlite3.Connection, prefix: str) -> str:
        found = connection.execute(_TRACE_IDS_BY_PREFIX, {"prefix": prefix, "limit": _LISTED_CANDIDATES}).fetchall()
        if not found:
            raise TraceNotFoundError(
                f"no trace {prefix} in {self._path}: it was not sampled, is older than what is kept, or ran elsewhere"
            )
        if len(found) > 1:
            candidates = ", ".join(trace_id for (trace_id,) in found)
            raise TracePrefixError(f"several traces begin with {prefix}: {candidates} …", field="trace_id")
        return str(found[0][0])

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        if not self._path.is_file():
            raise SpanStoreError(f"there are no local spans at {self._path}: no service has run with this state folder")
        try:
            with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    raise SpanStoreError(f"no spans have been written to {self._path} yet")
                if version != SCHEMA_VERSION:
                    raise SpanStoreError(f"{self._path} has schema {version}, this Forebay reads {SCHEMA_VERSION}")
                yield connection
        except sqlite3.Error as error:
            raise SpanStoreError(f"{self._path} cannot be read: {error}") from error


def _span(row: Row) -> StoredSpan:
    return StoredSpan(*row[:9], json.loads(row[9]))
