"""`forebay trace` before there is anything to show, and into a file."""

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext

from forebay.cli import trace
from forebay.mesh.state_dir import STATE_DIR_VARIABLE
from forebay.telemetry import spans
from forebay.telemetry.span_schema import store_path
from forebay.telemetry.span_store import SpanStoreError, TraceNotFoundError
from forebay.telemetry.sqlite_exporter import SqliteSpanExporter


@pytest.mark.parametrize("arguments", [[], ["--last"], ["--last", "--json"]])
def test_without_a_request_it_says_what_to_do(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path))
    with pytest.raises(SpanStoreError, match="no service has run"):
        trace.run(arguments)
    exporter = SqliteSpanExporter(store_path(tmp_path))
    exporter.export([ReadableSpan("kv.attach", SpanContext(1, 2, is_remote=False), start_time=1, end_time=2)])

    with pytest.raises(TraceNotFoundError, match="generate Hello"):
        trace.run(arguments)
    assert trace.run(["--all"]) == 0


def test_a_file_has_room_for_the_whole_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(STATE_DIR_VARIABLE, str(tmp_path))
    monkeypatch.setenv("COLUMNS", "60")
    context = SpanContext(1, 2, is_remote=False)
    one = ReadableSpan("generate", context, attributes={spans.PLAN_REASON: "because " * 40}, start_time=1, end_time=2)
    SqliteSpanExporter(store_path(tmp_path)).export([one])

    assert trace.run([f"{1:032x}"]) == 0
    assert f"reason={'because ' * 40}".rstrip() in capsys.readouterr().out
