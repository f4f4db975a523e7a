"""PrefillService: proto → sequence, run, sequence → proto."""

import dataclasses
from collections.abc import AsyncIterator

from opentelemetry.trace import Span, get_current_span

from forebay.engine.scheduler import FinishReason, finish_reason
from forebay.engine.types import Sequence, TokenLogprobs
from forebay.kv.hashing import root_hash
from forebay.telemetry import spans
from forebay.v1 import common_pb2, prefill_pb2, prefill_pb2_grpc
from forebay.wire.layout import layout_to_proto
from forebay.wire.tokens import FINISH_REASONS, logprobs_to_proto
from forebay.worker.request_check import ServedModel, check_prompt, check_request_id, priority_of, sampling_for
from forebay.worker.running_sequence import RunningSequence, SequenceSpec
from forebay.worker.sequence_runner import SequenceRunner
from forebay.worker.step_metrics import step_attributes


class PrefillServicer(prefill_pb2_grpc.PrefillServiceServicer):
    """Serves the prompts of one worker. `node_id` and `kvcache_address` say where its KV lies."""

    def __init__(self, runner: SequenceRunner, model: ServedModel, node_id: str, kvcache_address: str) -> None:
        self._runner = runner
        self._model = model
        self._node_id = node_id
        self._kvcache_address = kvcache_address

    async def Prefill(
        self, request: prefill_pb2.PrefillRequest, context: object
    ) -> AsyncIterator[prefill_pb2.PrefillResponse]:
        spec = self._spec(request)
        sampled: list[tuple[int, TokenLogprobs | None]] = []
        one_token = dataclasses.replace(spec, sampling=dataclasses.replace(spec.sampling, max_tokens=1))
        async with self._runner.open(one_token, lambda *token: sampled.append(token)) as running:
            if request.seals_as_filled:
                yield prefill_pb2.PrefillResponse(begun=prefill_pb2.Begun())
            await running.ended()
            token_id, logprobs = sampled[0]
            reason = self._reason(spec, token_id)
            _describe(get_current_span(), running)
            yield prefill_pb2.PrefillResponse(first_token=_first_token(running, token_id, logprobs, reason))
            if reason is None:
                epoch, block_hashes = await self._runner.hand_over(running)
                yield prefill_pb2.PrefillResponse(manifest=self._manifest(spec, epoch, block_hashes))
                # Reached only when the manifest was written; until then leaving releases the sequence.
                self._runner.give_away(running)
            else:
                self._runner.keep(running)

    def _spec(self, request: prefill_pb2.PrefillRequest) -> SequenceSpec:
        check_request_id(request.request_id)
        prompt = list(request.token_ids)
        check_prompt(self._model, prompt, "token_ids")
        return SequenceSpec(
            sequence_id=request.request_id,
            prompt_token_ids=prompt,
            sampling=sampling_for(self._model, request.sampling, len(prompt)),
            hash_root=root_hash(self._model.digest, request.tenant, request.cache_salt),
            priority=priority_of(request.qos_tier),
            is_alone=request.qos_tier == common_pb2.QOS_TIER_BACKUP,
            tenant=request.tenant,
            seals_as_filled=request.seals_as_filled,
        )

    def _reason(self, spec: SequenceSpec, token_id: int) -> FinishReason | None:
        """Whether the first token ends the request as it was asked for."""
        asked = Sequence(spec.sequence_id, spec.prompt_token_ids, spec.sampling, [], output_token_ids=[token_id])
        return finish_reason(asked, self._model.context_tokens)

    def _manifest(self, spec: SequenceSpec, epoch: int, block_hashes: list[bytes]) -> common_pb2.Manifest:
        return common_pb2.Manifest(
            sequence_id=spec.sequence_id,
            node_id=self._node_id,
            kvcache_address=self._kvcache_address,
            epoch=epoch,
            layout=layout_to_proto(self._model.layout),
            token_count=len(spec.prompt_token_ids),
            block_hashes=block_hashes,
            model_digest=self._model.digest,
        )


def _first_token(
    running: RunningSequence, token_id: int, logprobs: TokenLogprobs | None, reason: FinishReason | None
) -> prefill_pb2.FirstToken:
    cost = running.cost
    return prefill_pb2.FirstToken(
        token_id=token_id,
        logprobs=None if logprobs is None else logprobs_to_proto(token_id, logprobs),
        finish_reason=common_pb2.FINISH_REASON_UNSPECIFIED if reason is None else FINISH_REASONS[reason],
        cached_tokens=cost.cached_prompt_tokens,
        queue_s=cost.queue_s,
        prefill_s=cost.prefill_s,
        computed_tokens=cost.computed_prompt_tokens,
    )


def _describe(span: Span, running: RunningSequence) -> None:
    cost = running.cost
    span.set_attributes(
        {
            spans.REQUEST_ID: running.sequence_id,
            spans.INPUT_TOKENS: len(running.spec.prompt_token_ids),
            spans.CACHED_TOKENS: cost.cached_prompt_tokens,
            spans.COMPUTED_TOKENS: cost.computed_prompt_tokens,
            spans.CHUNKS: cost.chunks,
            spans.QUEUE_S: cost.queue_s,
            **cost.pauses.attributes(),
            spans.PREFILL_S: cost.prefill_s,
            **step_attributes(cost.prefill_totals),
        }
    )
