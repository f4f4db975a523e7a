"""One StartSequence: checked, run under its deadline and its span, summed up."""

import asyncio

from opentelemetry.trace import Span, SpanKind
from opentelemetry.util.types import AttributeValue

from forebay.errors import DeadlineExceededError, InvalidFieldError
from forebay.kv.hashing import root_hash
from forebay.telemetry import extract, span, spans
from forebay.v1 import common_pb2, decode_pb2
from forebay.wire.tokens import FINISH_REASONS
from forebay.worker.request_check import (
    ServedModel,
    check_prompt,
    check_request_id,
    check_source,
    check_tokens,
    deadline_of,
    left_behind_of,
    offer_of,
    priority_of,
    sampling_for,
)
from forebay.worker.running_sequence import RunningSequence, SequenceSpec, TokenSink
from forebay.worker.sequence_runner import SequenceRunner
from forebay.worker.step_metrics import step_attributes


async def generate(
    start: decode_pb2.StartSequence,
    runner: SequenceRunner,
    model: ServedModel,
    node_id: str,
    on_token: TokenSink,
    summary: decode_pb2.DecodeSummary,
) -> "common_pb2.FinishReason.ValueType":
    """Generates to the natural end and fills in `summary`, however it ends.

    Raises the errors listed at StartSequence. A cancel gives up everything.
    """
    attributes: dict[str, AttributeValue] = {
        spans.REQUEST_ID: start.request_id,
        spans.INPUT_TOKENS: len(start.prompt_token_ids),
    }
    parent = extract({"traceparent": start.traceparent, "tracestate": start.tracestate})
    with span(spans.DECODE, attributes, context=parent, kind=SpanKind.SERVER) as current:
        spec = _spec(start, model, node_id)
        deadline_s = deadline_of(start.deadline_s) if start.HasField("deadline_s") else None
        try:
            async with asyncio.timeout(deadline_s), runner.open(spec, on_token) as running:
                try:
                    reason = FINISH_REASONS[await running.ended()]
                finally:
                    _sum_up(running, summary)
                    _describe(current, running)
        except TimeoutError:
            raise DeadlineExceededError("the deadline passed") from None
        name = common_pb2.FinishReason.Name(reason).removeprefix("FINISH_REASON_").lower()
        current.set_attribute(spans.FINISH_REASONS, [name])
        return reason


def _spec(start: decode_pb2.StartSequence, model: ServedModel, node_id: str) -> SequenceSpec:
    check_request_id(start.request_id)
    prompt, emitted = list(start.prompt_token_ids), list(start.emitted_token_ids)
    check_prompt(model, prompt, "prompt_token_ids")
    check_tokens(model, emitted, "emitted_token_ids")
    offer, source, known_tokens = None, None, len(prompt) + len(emitted)
    if start.HasField("left_behind_epoch"):
        if start.HasField("manifest"):
            raise InvalidFieldError("a sequence is handed over or left behind, not both", field="left_behind_epoch")
        offer = left_behind_of(start.left_behind_epoch, len(prompt), known_tokens)
    elif start.HasField("manifest"):
        if start.manifest.sequence_id != start.request_id:
            raise InvalidFieldError("the manifest is of another sequence", field="manifest.sequence_id")
        if start.manifest.node_id == node_id:
            offer = offer_of(model, start.manifest, known_tokens)
        else:
            source = start.manifest
            check_source(model, source, known_tokens)
    return SequenceSpec(
        sequence_id=start.request_id,
        prompt_token_ids=prompt,
        emitted_token_ids=emitted,
        sampling=sampling_for(model, start.sampling, len(prompt)),
        hash_root=root_hash(model.digest, start.tenant, start.cache_salt),
        priority=priority_of(start.qos_tier),
        tenant=start.tenant,
        offer=offer,
        source=source,
        is_alone=start.qos_tier == common_pb2.QOS_TIER_BACKUP,
    )


def _sum_up(running: RunningSequence, summary: decode_pb2.DecodeSummary) -> None:
    cost = running.cost
    summary.cached_tokens = cost.cached_prompt_tokens
    summary.computed_prompt_tokens = cost.computed_prompt_tokens
    summary.queue_s = cost.queue_s
    summary.prefill_s = cost.prefill_s
    summary.decode_s = cost.decode_s
    summary.decode_steps = cost.decode_steps
    summary.transfer_s = cost.transfer_s
    summary.transfer_bytes = cost.transfer_bytes


def _describe(current: Span, running: RunningSequence) -> None:
    cost = running.cost
    current.set_attributes(
        {
            spans.OUTPUT_TOKENS: len(running.new_token_ids),
            spans.CACHED_TOKENS: cost.cached_prompt_tokens,
            spans.COMPUTED_TOKENS: cost.computed_prompt_tokens,
            spans.CHUNKS: cost.chunks,
            spans.DECODE_STEPS: cost.decode_steps,
            spans.PARKS: cost.parks,
            spans.QUEUE_S: cost.queue_s,
            **cost.pauses.attributes(),
            spans.PREFILL_S: cost.prefill_s,
            spans.DECODE_S: cost.decode_s,
            spans.TRANSFER_S: cost.transfer_s,
            spans.TRANSFER_BYTES: cost.transfer_bytes,
            **step_attributes(cost.decode_totals),
        }
    )
