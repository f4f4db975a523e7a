"""`forebay trace`: where the time of a request went, from the spans kept on this machine."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Final

from forebay.cli.parsing import command_parser
from forebay.cli.program import program_name
from forebay.mesh.state_dir import current_state_dir
from forebay.telemetry import spans
from forebay.telemetry.span_schema import store_path
from forebay.telemetry.span_store import SpanStore, StoredSpan, TraceNotFoundError, TraceSummary
from forebay.telemetry.waterfall import waterfall

_EXAMPLES: Final = """\
  forebay trace                      the latest traces
  forebay trace --last               the latest one in full
  forebay trace 4bf92f35             the one whose id begins so
  forebay trace 4bf92f35 --json"""
_LOOKED_AT: Final = 10_000
_PATIENCE_S: Final = 2.0
_WRITTEN_AFTER_S: Final = 1.0
"""Services write their spans in batches, about every half second."""
_RETRY_INTERVAL_S: Final = 0.1


def run(arguments: Sequence[str]) -> int:
    """Lists recent traces, or prints one as a waterfall or JSON."""
    parser = command_parser("trace", "Shows a request's spans as a waterfall, or lists recent requests.", _EXAMPLES)
    parser.add_argument("trace_id", nargs="?", metavar="ID", help="trace id or its beginning; without it: a list")
    parser.add_argument("--last", action="store_true", help="the latest trace in full")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="traces to list (default: 20)")
    parser.add_argument("--all", action="store_true", help="list also what belongs to no request, such as upkeep")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    if given.limit < 1:
        parser.error("--limit must be at least 1")
    if given.last and given.trace_id is not None:
        parser.error("give either an ID or --last")
    store = SpanStore(store_path(current_state_dir()))
    trace_id = _last_id(store) if given.last else given.trace_id
    if trace_id is None:
        summaries = store.recent(given.limit) if given.all else _requests(store, given.limit)
        print(json.dumps([asdict(one) for one in summaries], indent=2) if given.json else _listed(summaries))
        return 0
    found = _settled(store, trace_id)
    if given.json:
        print(json.dumps([asdict(span) for span in found], indent=2, ensure_ascii=False))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None  # a file has room for all
        print("\n".join(waterfall(found, width)))
    return 0


def _last_id(store: SpanStore) -> str:
    summaries = _requests(store, 1)
    if not summaries:
        raise _nothing_yet()
    return summaries[0].trace_id


def _nothing_yet() -> TraceNotFoundError:
    return TraceNotFoundError(f"there is no trace of a request yet; make one: {program_name()} generate Hello")


def _requests(store: SpanStore, limit: int) -> list[TraceSummary]:
    """The latest traces of requests; upkeep such as a worker's attaching makes traces of its own."""
    recent = store.recent(_LOOKED_AT)
    return [summary for summary in recent if summary.name == spans.GENERATE][:limit]


def _settled(store: SpanStore, trace_id: str) -> list[StoredSpan]:
    """The trace's spans, once all services have had the time to write theirs; at most two seconds later."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        is_late = time.monotonic() >= deadline_s
        try:
            found = store.trace(trace_id)
        except TraceNotFoundError:
            if is_late:
                raise
        else:
            if is_late or _is_written(found, time.time_ns()):
                return found
        time.sleep(_RETRY_INTERVAL_S)


def _is_written(found: Sequence[StoredSpan], now_ns: int) -> bool:
    """Whether the root is there and so long over that the other services' spans must be there too."""
    roots = [span for span in found if span.parent_span_id is None]
    return bool(roots) and now_ns - roots[0].end_ns >= _WRITTEN_AFTER_S * 1e9


def _listed(summaries: Sequence[TraceSummary]) -> str:
    if not summaries:
        raise _nothing_yet()
    return "\n".join(_line(summary) for summary in summaries)


def _line(summary: TraceSummary) -> str:
    began = datetime.fromtimestamp(summary.start_ns / 1e9).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    duration_ms = (summary.end_ns - summary.start_ns) / 1e6
    failed = f"  {summary.error_count} failed" if summary.error_count else ""
    spans = "1 span" if summary.span_count == 1 else f"{summary.span_count} spans"
    return f"{summary.trace_id}  {began}  {duration_ms:>9.1f} ms  {spans:>9}  {summary.service} {summary.name}{failed}"
