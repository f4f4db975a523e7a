"""Draws a trace for a terminal. Pure: spans in, lines out; knows neither where spans are stored nor the terminal.

One line per span, children under their parents by start: service, name, bar, duration, key attributes. A thick bar is
work; a thin one is a stream that is open while others work, and is fed by them.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from forebay.telemetry import spans as names
from forebay.telemetry.span_store import StoredSpan

_LEAST_LAYOUT_WIDTH = 60
"""Lines are laid out for this many characters at least; what a narrower terminal has no room for is cut off."""
_STREAMS = frozenset({names.DETOKENIZE})
_WORK, _STREAM = "█", "─"
_MOST_BAR_WIDTH = 48

_SHOWN = {
    names.MODE: "mode",
    names.INPUT_TOKENS: "in",
    names.OUTPUT_TOKENS: "out",
    names.MATCHED_TOKENS: "matched",
    names.CACHED_TOKENS: "cached",
    names.COMPUTED_TOKENS: "computed",
    names.DECODE_STEPS: "steps",
    names.FLOPS_UTILIZATION: "flops",
    names.BANDWIDTH_UTILIZATION: "bandwidth",
    names.TTFT_S: "ttft",
    names.QUEUE_S: "queue",
    names.PAUSED_S: "paused",
    names.KV_BLOCKS: "blocks",
    names.KV_COPIED_BYTES: "copied",
    names.TRANSFER_BYTES: "moved",
    names.FINISH_REASONS: "finish",
    names.WORKER_ID: "worker",
    names.PLAN_REASON: "reason",
}
"""Attributes worth a place on the line, in this order, by their short labels."""


@dataclass(frozen=True, slots=True)
class _Row:
    span: StoredSpan
    depth: int
    note: str | None


@dataclass(frozen=True, slots=True)
class _Columns:
    """Widths in characters, and the time span of the bars."""

    service: int
    name: int
    indent_limit: int
    bar: int
    attributes: int
    start_ns: int
    total_ns: int


_DURATION_WIDTH = 8
_GAPS = 4 * 2


def waterfall(spans: Sequence[StoredSpan], width: int | None) -> list[str]:
    """The lines of one trace, each at most `max(width, 1)` characters; None: nothing is cut. The first two sum it up.

    A span whose parent is not among `spans` stands at the left edge, and a line under it says so. No spans, no lines.
    """
    if not spans:
        return []
    rows = _rows(spans)
    columns = _unlimited_columns(rows) if width is None else _columns(rows, max(width, _LEAST_LAYOUT_WIDTH))
    lines = [f"trace {rows[0].span.trace_id}", _summary(rows, columns.total_ns)]
    for row in rows:
        lines.append(_line(row, columns))
        if row.note is not None:
            lines.append(f"{' ' * columns.service}  └ {row.note}")
    return [_fit(line, len(line) if width is None else max(width, 1)).rstrip() for line in lines]


def _rows(spans: Sequence[StoredSpan]) -> list[_Row]:
    """Every span once, parents before children, siblings by start."""
    by_start = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns, span.span_id))
    known = {span.span_id for span in spans}
    children: defaultdict[str, list[StoredSpan]] = defaultdict(list)
    for span in by_start:
        if span.parent_span_id in known:
            children[span.parent_span_id or ""].append(span)
    rows: list[_Row] = []
    placed: set[int] = set()
    tops = [span for span in by_start if span.parent_span_id not in known]
    # Spans that are their own ancestors hang from no top: whatever is left starts a tree of its own.
    for top in (*tops, *by_start):
        stack = [_Row(top, 0, _note(top, known))]
        while stack:
            row = stack.pop()
            if id(row.span) in placed:
                continue
            placed.add(id(row.span))
            rows.append(row)
            stack += [_Row(child, row.depth + 1, None) for child in reversed(children[row.span.span_id])]
    return rows


def _note(top: StoredSpan, known: set[str]) -> str | None:
    if top.parent_span_id is None:
        return None
    if top.parent_span_id in known:
        return "orphan: its parents form a circle"
    return f"orphan: parent {top.parent_span_id} is missing (still open, or lost)"


def _unlimited_columns(rows: Sequence[_Row]) -> _Columns:
    """As wide as what stands in them."""
    service = max(len(row.span.service) for row in rows)
    name = max(2 * row.depth + len(row.span.name) for row in rows)
    attributes = max(len(_attributes(row)) for row in rows)
    return _Columns(service, name, name, _MOST_BAR_WIDTH, attributes, *_time_span(rows))


def _time_span(rows: Sequence[_Row]) -> tuple[int, int]:
    """Start and length in nanoseconds."""
    start_ns = min(row.span.start_ns for row in rows)
    return start_ns, max(max(row.span.end_ns, row.span.start_ns) for row in rows) - start_ns


def _columns(rows: Sequence[_Row], width: int) -> _Columns:
    service = min(max(len(row.span.service) for row in rows), 10)
    wanted = max(2 * row.depth + len(row.span.name) for row in rows)
    name = min(wanted, width // 4)
    # Where names are cut anyway, indentation takes no more than half of their room.
    indent_limit = name // 2 if name < wanted else name
    left = width - service - name - _DURATION_WIDTH - _GAPS
    bar_width = min(left // 2, _MOST_BAR_WIDTH)
    return _Columns(service, name, indent_limit, bar_width, left - bar_width, *_time_span(rows))


def _summary(rows: Sequence[_Row], total_ns: int) -> str:
    services = sorted({row.span.service for row in rows})
    roots = sum(row.span.parent_span_id is None for row in rows)
    orphans = sum(row.note is not None for row in rows)
    parts = [_duration(total_ns / 1e9), f"spans={len(rows)}"]
    if roots != 1:
        parts.append(f"roots={roots}")
    if orphans:
        parts.append(f"orphans={orphans}")
    request_id = rows[0].span.attributes.get(names.REQUEST_ID)
    if request_id is not None:
        parts.append(f"request={request_id}")
    return "  ".join([*parts, " ".join(services)])


def _line(row: _Row, columns: _Columns) -> str:
    span = row.span
    indent = " " * min(2 * row.depth, columns.indent_limit)
    offset_ns, duration_ns = span.start_ns - columns.start_ns, max(0, span.end_ns - span.start_ns)
    fill = _STREAM if span.name in _STREAMS else _WORK
    return "  ".join(
        (
            _fit(span.service, columns.service),
            _fit(indent + span.name, columns.name),
            bar(offset_ns, duration_ns, columns.total_ns, columns.bar, fill),
            _duration(duration_ns / 1e9).rjust(_DURATION_WIDTH),
            _fit(_attributes(row), columns.attributes),
        )
    )


def bar(offset_ns: int, duration_ns: int, total_ns: int, width: int, fill: str = _WORK) -> str:
    """`width` characters with a bar, at least one wide, where [offset, offset + duration) lies in [0, total)."""
    if total_ns <= 0:
        return fill.ljust(width)
    first = min(offset_ns * width // total_ns, width - 1)
    # Rounded up, so that a bar also covers the cell its last moment lies in.
    last = min(-(-(offset_ns + max(duration_ns, 0)) * width // total_ns), width)
    return (" " * first + fill * max(1, last - first)).ljust(width)


def _attributes(row: _Row) -> str:
    attributes = row.span.attributes
    parts = []
    if row.span.status == "ERROR":
        parts.append(f"FAILED {attributes.get(names.ERROR_TYPE, '')}".rstrip())
    parts += [f"{label}={_value(key, attributes[key])}" for key, label in _SHOWN.items() if key in attributes]
    return " ".join(parts)


def _value(key: str, value: object) -> str:
    if isinstance(value, int | float) and key.endswith("_s"):
        return _duration(value)
    if isinstance(value, int | float) and key.endswith("_bytes"):
        return _size(value)
    if isinstance(value, int | float) and key.endswith("_utilization"):
        return f"{value:.0%}"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _duration(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.2f}{unit}" if seconds * factor < 100 else f"{seconds * factor:.0f}{unit}"
    return f"{seconds * 1e6:.0f}µs"


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f}{unit}" if unit == "B" else f"{size_bytes:.1f}{unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f}GiB"


def _fit(text: str, width: int) -> str:
    """Exactly `width` characters, and none that could command a terminal."""
    clean = "".join(character if character.isprintable() else "?" for character in text)
    return clean.ljust(width) if len(clean) <= width else clean[: width - 1] + "…"
