"""The table of local spans: what the exporter writes and the store reads. Knows no connection."""

from pathlib import Path

SCHEMA_VERSION = 2
"""Kept in `PRAGMA user_version`; 0 is a file nobody has written yet."""

CREATE = (
    "CREATE TABLE spans (trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_span_id TEXT, name TEXT NOT NULL,"
    " service TEXT NOT NULL, kind TEXT NOT NULL, start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,"
    " status TEXT NOT NULL, attributes TEXT NOT NULL)",
    # Holds all that listing and pruning traces need, so that neither reads the rows.
    "CREATE INDEX spans_by_trace ON spans (trace_id, start_ns, end_ns)",
    f"PRAGMA user_version = {SCHEMA_VERSION}",
)

COLUMNS = "trace_id, span_id, parent_span_id, name, service, kind, start_ns, end_ns, status, attributes"
"""In the order of a row. `attributes` is a JSON object; ids are hex."""

Row = tuple[str, str, str | None, str, str, str, int, int, str, str]
"""One span, as COLUMNS has it."""


def store_path(state_dir: Path) -> Path:
    """Where the processes that share `state_dir` keep their spans."""
    return state_dir / "spans.sqlite"
