"""One trace per request through all services: one root, no orphan, and the spans that the documentation promises."""

import re
from pathlib import Path

from forebay.client import Client
from forebay.telemetry import spans
from forebay.testing.mesh import RunningMesh
from forebay.testing.prompts import LONG_PROMPTS
from forebay.testing.traces import stored_trace

_PAGE = Path(__file__).parents[2] / "docs" / "telemetry.md"

NAMES = {
    spans.GENERATE,
    spans.TOKENIZE,
    spans.PLAN,
    spans.PREFILL,
    spans.DECODE,
    spans.DETOKENIZE,
    spans.KV_ACQUIRE,
    spans.KV_SEAL,
}


async def test_a_split_request_is_one_tree(mesh: RunningMesh, client: Client) -> None:
    completion = client.generate("One trace", max_tokens=40, temperature=0, mode="split", ignore_eos=True)
    trace = await stored_trace(mesh, completion.trace_id, NAMES)
    assert {one.service for one in trace} == {"router", "tokenizer", "prefill", "kvcache", "decode"}
    ids = {one.span_id for one in trace}
    roots = [one for one in trace if one.parent_span_id is None]
    assert [root.name for root in roots] == [spans.GENERATE]
    assert all(one.parent_span_id in ids for one in trace if one is not roots[0])
    begin, end = roots[0].start_ns, roots[0].end_ns
    assert all(begin <= one.start_ns <= end for one in trace)
    assert not any("One trace" in str(one.attributes) for one in trace), "no prompt text in spans"
    assert len(trace) < 25, "spans summarise: they do not grow with the tokens"


async def test_long_requests_of_all_modes_make_the_documented_spans(mesh: RunningMesh, client: Client) -> None:
    made: set[tuple[str, str]] = set()
    for mode, forced, salt in (("SPLIT", "split", "a"), ("LOCAL", "local", "b"), ("RESUME", None, "b")):
        done = client.generate(
            LONG_PROMPTS[0], mode=forced, cache_salt=salt, max_tokens=168, temperature=0, ignore_eos=True
        )
        assert done.plan.mode.value.upper() == mode
        trace = await stored_trace(mesh, done.trace_id, {spans.GENERATE, spans.DECODE, spans.KV_EXTEND})
        ids = {one.span_id for one in trace}
        decode = next(one for one in trace if one.name == spans.DECODE)
        extends = [one for one in trace if one.name == spans.KV_EXTEND]
        assert {one.parent_span_id for one in extends} == {decode.span_id}
        assert sum(one.parent_span_id not in ids for one in trace) == 1, "only the root has no parent here"
        assert decode.attributes[spans.FINISH_REASONS] == ["length"]
        made |= {(one.name, one.service) for one in trace}
    elsewhere = {
        (spans.KV_ATTACH, "kvcache"),
        (spans.KV_TRANSFER, "kvcache"),
        (spans.FAILOVER, "router"),
        (spans.ADMIT, "router"),
    }
    assert made == documented() - elsewhere, (
        "attaching is no request's, transfers are two nodes', nobody failed or waited"
    )


def documented() -> set[tuple[str, str]]:
    """Spans with their services, as the table has them."""
    section = _PAGE.read_text(encoding="utf-8").split("### Spans\n")[1].split("\n#")[0]
    rows = re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \|", section, flags=re.MULTILINE)
    return {(name, service) for name, services in rows for service in services.split(", ")}
