"""Facts about a drawn trace: every span once, in tree order, inside the width, orphans named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.telemetry import spans as names
from forebay.telemetry.span_store import StoredSpan
from forebay.telemetry.waterfall import bar, waterfall

_HEADER_LINES = 2
ROOMY = 60


def span(
    number: int,
    parent: int | None = None,
    times_ms: tuple[float, float] = (0, 1),
    *,
    name: str | None = None,
    **fields: object,
) -> StoredSpan:
    start, end = (round(time * 1e6) for time in times_ms)
    defaults: dict[str, object] = {
        "service": "router",
        "kind": "INTERNAL",
        "status": "UNSET",
        "attributes": {},
    }
    return StoredSpan(
        trace_id="ab" * 16,
        span_id=f"{number:016x}",
        parent_span_id=None if parent is None else f"{parent:016x}",
        name=name or f"<{number}>",
        start_ns=start,
        end_ns=end,
        **(defaults | fields),  # type: ignore[arg-type]  # the fields of StoredSpan
    )


def line_of(lines: list[str], name: str) -> int:
    (found,) = [index for index, line in enumerate(lines) if f" {name} " in line]
    return found


@st.composite
def forests(draw: st.DrawFn) -> list[StoredSpan]:
    """Spans whose parents all came before them, if they have one: no circles, no orphans."""
    count = draw(st.integers(1, 12))
    parents = [draw(st.none() | st.integers(0, number - 1)) if number else None for number in range(count)]
    times = st.tuples(st.integers(0, 50), st.integers(0, 50))
    spans = [span(number, parent, draw(times)) for number, parent in enumerate(parents)]
    return draw(st.permutations(spans))


@st.composite
def any_spans(draw: st.DrawFn) -> list[StoredSpan]:
    """Whatever a damaged trace may hold: parents missing, circles, ends before starts, odd names."""
    count = draw(st.integers(1, 12))
    moments = st.integers(0, 10**6)
    return [
        span(
            number,
            draw(st.none() | st.integers(0, count + 2)),
            (draw(moments), draw(moments)),
            name=draw(st.text(max_size=60)) or "-",
            service=draw(st.text(max_size=20)),
            status=draw(st.sampled_from(["UNSET", "ERROR"])),
            attributes=draw(st.dictionaries(st.sampled_from(["forebay.mode", "forebay.queue_s"]), st.text(max_size=9))),
        )
        for number in range(count)
    ]


@given(spans=any_spans(), width=st.none() | st.integers(-5, 250))
def test_every_span_has_one_printable_line_inside_the_width(spans: list[StoredSpan], width: int | None) -> None:
    lines = waterfall(spans, width)
    assert width is None or all(len(line) <= max(width, 1) for line in lines)
    if width is None or width >= ROOMY:
        notes = [line for line in lines if "└ orphan" in line]
        assert len(lines) == _HEADER_LINES + len(spans) + len(notes)
    assert all(line.isprintable() for line in lines)


@given(spans=forests(), width=st.integers(ROOMY, 250))
def test_children_stand_under_their_parent_and_further_in(spans: list[StoredSpan], width: int) -> None:
    lines = waterfall(spans, width)
    assert not any("orphan" in line for line in lines)
    names = {span.span_id: span.name for span in spans}
    for child in spans:
        if child.parent_span_id is None:
            continue
        here, above = line_of(lines, child.name), line_of(lines, names[child.parent_span_id])
        assert here > above
        assert lines[here].index(child.name) >= lines[above].index(names[child.parent_span_id])


def test_indentation_shows_depth() -> None:
    lines = waterfall([span(1), span(2, 1), span(3, 2)], 100)
    columns = [lines[line_of(lines, f"<{number}>")].index("<") for number in (1, 2, 3)]
    assert columns == [columns[0], columns[0] + 2, columns[0] + 4]


def test_siblings_stand_by_start_whole_subtrees_together() -> None:
    spans = [span(1, None, (0, 9)), span(2, 1, (5, 6)), span(3, 1, (1, 8)), span(4, 3, (7, 8))]
    lines = waterfall(spans, 100)
    assert [line_of(lines, f"<{number}>") for number in (1, 3, 4, 2)] == [2, 3, 4, 5]


def test_orphan_is_named_under_its_line() -> None:
    lines = waterfall([span(1), span(2, parent=0xFEED)], 100)
    assert "orphans=1" in lines[1]
    below = lines[line_of(lines, "<2>") + 1]
    assert "orphan: parent 000000000000feed is missing" in below


def test_circle_of_parents_is_told() -> None:
    lines = waterfall([span(1), span(2, 3, (1, 2)), span(3, 2, (3, 4)), span(4, 4)], 100)
    assert "orphans=2" in lines[1]
    assert sum("circle" in line for line in lines) == 2
    assert line_of(lines, "<3>") > line_of(lines, "<2>")


def test_several_roots_are_counted() -> None:
    assert "roots=2" in waterfall([span(1), span(2)], 100)[1]
    assert "roots" not in waterfall([span(1), span(2, 1)], 100)[1]


def test_header_sums_up() -> None:
    lines = waterfall([span(1, None, (10, 40)), span(2, 1, (20, 60), service="decode")], 100)
    assert lines[0] == f"trace {'ab' * 16}"
    assert lines[1].split() == ["50.00ms", "spans=2", "decode", "router"]


def test_header_names_the_request_of_the_first_span() -> None:
    of_request, of_attempt = ({names.REQUEST_ID: value} for value in ("r-1", "r-1.nonce"))
    lines = waterfall([span(1, attributes=of_request), span(2, 1, attributes=of_attempt)], 100)
    assert lines[1].split() == ["1.00ms", "spans=2", "request=r-1", "router"]


def test_failure_and_attributes_are_shown() -> None:
    attributes = {
        "error.type": "KV_EXHAUSTED",
        "forebay.mode": "SPLIT",
        "forebay.bandwidth_utilization": 0.617,
        "forebay.queue_s": 0.0125,
        "forebay.kv.copied_bytes": 0,
        "forebay.transfer_bytes": 3 << 20,
        "gen_ai.response.finish_reasons": ["stop"],
        "forebay.request_id": "not-on-the-line",
    }
    one = span(1, status="ERROR", attributes=attributes)
    line = waterfall([one], 250)[2]
    expected = "FAILED KV_EXHAUSTED mode=SPLIT bandwidth=62% queue=12.50ms copied=0B moved=3.0MiB finish=stop"
    assert line.endswith(expected)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0µs"), (0.00025, "250µs"), (0.25, "250ms"), (2.5, "2.50s"), (250, "250s")]
)
def test_durations_have_fitting_units(seconds: float, text: str) -> None:
    assert text in waterfall([span(1, None, (0, seconds * 1e3))], 100)[2].split()


def test_without_a_width_nothing_is_cut() -> None:
    spans = [
        span(1, None, (0, 9), name="n" * 80, service="s" * 40, attributes={"forebay.plan.reason": "r" * 300}),
        *(span(depth, depth - 1) for depth in range(2, 60)),
    ]
    lines = waterfall(spans, None)
    assert all(word in lines[_HEADER_LINES] for word in ("n" * 80, "s" * 40, "reason=" + "r" * 300))
    assert lines[-1].split()[1] == "<59>"


@pytest.mark.parametrize("width", [1, 20, 59, 60, 80, 200])
def test_no_bar_is_wider_than_the_terminal(width: int) -> None:
    assert all(len(line) <= width for line in waterfall([span(1, None, (0, 9)), span(2, 1, (3, 9))], width))


def test_a_stream_is_a_thin_line_and_work_a_thick_one() -> None:
    lines = waterfall([span(1, None, (0, 9), name="decode"), span(2, 1, (3, 9), name=names.DETOKENIZE)], 100)
    assert "█" in lines[line_of(lines, "decode")]
    stream = lines[line_of(lines, names.DETOKENIZE)]
    assert "─" in stream
    assert "█" not in stream


def test_no_spans_no_lines() -> None:
    assert waterfall([], 80) == []


@given(width=st.integers(1, 100), total=st.integers(0, 10**12), data=st.data())
def test_bar_is_one_piece_inside_its_column(width: int, total: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, total))
    duration = data.draw(st.integers(-5, total - offset))
    drawn = bar(offset, duration, total, width)
    assert len(drawn) == width
    filled = drawn.strip()
    assert filled
    assert set(filled) == {"█"}


@given(width=st.integers(1, 100), cuts=st.lists(st.integers(1, 10**6), min_size=1, max_size=5))
def test_bars_of_consecutive_spans_leave_no_gap(width: int, cuts: list[int]) -> None:
    total = sum(cuts)
    starts = [sum(cuts[:index]) for index in range(len(cuts))]
    drawn = [bar(start, length, total, width) for start, length in zip(starts, cuts, strict=True)]
    assert all(any(line[cell] == "█" for line in drawn) for cell in range(width))
    assert [line.index("█") for line in drawn] == sorted(line.index("█") for line in drawn)
