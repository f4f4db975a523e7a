"""One trace per request through all services: one root, no orphan."""

from forebay.client import Client
from forebay.telemetry import spans
from forebay.testing.mesh import RunningMesh
from forebay.testing.traces import stored_trace

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
