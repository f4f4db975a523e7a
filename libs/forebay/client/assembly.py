"""Puts a completion together from the events of a `Generate` call, and of those that went on where it was lost. Pure.

Knows protos; does no I/O.
"""

from dataclasses import replace
from typing import Final

from forebay.client.completion import (
    Chunk,
    Completion,
    Explanation,
    FinishReason,
    Plan,
    Prediction,
    Timings,
    TokenLogprobs,
    TokenProbability,
    Usage,
)
from forebay.client.errors import BrokenAnswerError
from forebay.client.request import MODE_NUMBERS
from forebay.v1 import common_pb2, router_pb2

_MODES: Final = {number: mode for mode, number in MODE_NUMBERS.items()}
_FINISH_REASONS: Final = {
    common_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    common_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}


class Assembly:
    """The state of one answer: started, then chunks, then finished. A call that goes on begins with started again."""

    def __init__(self) -> None:
        self.started: router_pb2.Started | None = None
        self.plan: Plan | None = None
        self.completion: Completion | None = None
        self.resume_count = 0
        self._is_started = False  # in the call that is read now
        self._first_token_s: float | None = None
        self._chunks: list[Chunk] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(chunk.text for chunk in self._chunks)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens so far."""
        return tuple(token_id for chunk in self._chunks for token_id in chunk.token_ids)

    def add(self, event: router_pb2.GenerateResponse, now_s: float) -> Chunk | None:
        """Takes the next event; returns the chunk it carried, if it carried one. now_s: since the request was asked.

        Raises BrokenAnswerError for an event out of order.
        """
        kind = event.WhichOneof("event")
        if (kind == "started") is self._is_started or self.completion is not None:
            raise BrokenAnswerError(f"the router sent {kind!r} out of order")
        if kind == "started":
            self._start(event.started)
        elif kind == "chunk":
            chunk = _chunk(event.chunk)
            if chunk.token_ids and self._first_token_s is None:
                self._first_token_s = now_s
            self._chunks.append(chunk)
            return chunk
        elif kind == "finished":
            self.completion = self._completion(event.finished, now_s)
        return None

    def go_on(self, request: router_pb2.GenerateRequest) -> router_pb2.GenerateRequest:
        """The call was lost: what to ask another router, so that it says what is missing."""
        resumed = router_pb2.GenerateRequest()
        resumed.CopyFrom(request)
        resumed.resume.SetInParent()
        if self.started is not None:
            resumed.request_id = self.started.request_id
            resumed.sampling.seed = self.started.seed
            resumed.resume.model_digest = self.started.model_digest
            resumed.resume.text_characters = len(self.text)
            resumed.resume.emitted_token_ids.extend(self.token_ids)
        self._is_started = False
        return resumed

    def _start(self, started: router_pb2.Started) -> None:
        self._is_started = True
        self.resume_count += self.started is not None
        self.started = started
        if self.plan is None or started.HasField("plan"):
            self.plan = read_plan(started.plan)

    def _completion(self, finished: router_pb2.Finished, now_s: float) -> Completion:
        assert self.started is not None
        assert self.plan is not None
        timings = _timings(finished.timings)
        if self.resume_count:  # no router has seen the whole
            timings = replace(timings, time_to_first_token_s=self._first_token_s or 0.0, total_s=now_s)
        reason = _FINISH_REASONS.get(finished.finish_reason)
        if reason is None:
            raise BrokenAnswerError("the router did not say why the answer ended")
        return Completion(
            text=self.text,
            token_ids=self.token_ids,
            logprobs=tuple(entry for chunk in self._chunks for entry in chunk.logprobs),
            finish_reason=reason,
            stop_match=finished.stop_match if finished.HasField("stop_match") else None,
            usage=_usage(finished.usage),
            timings=timings,
            plan=self.plan,
            request_id=self.started.request_id,
            trace_id=self.started.trace_id,
            failover_count=finished.failover_count,
            recomputed_tokens=finished.recomputed_tokens,
        )


def _chunk(chunk: router_pb2.Chunk) -> Chunk:
    return Chunk(chunk.text, tuple(chunk.token_ids), tuple(_logprobs(entry) for entry in chunk.logprobs))


def _logprobs(entry: common_pb2.TokenLogprobs) -> TokenLogprobs:
    return TokenLogprobs(_probability(entry.chosen), tuple(_probability(other) for other in entry.alternatives))


def _probability(entry: common_pb2.TokenProbability) -> TokenProbability:
    return TokenProbability(entry.token_id, entry.logprob)


def read_explanation(response: router_pb2.ExplainRequestResponse) -> Explanation:
    """The values of an ExplainRequestResponse."""
    rejected = read_plan(response.rejected) if response.HasField("rejected") else None
    return Explanation(read_plan(response.chosen), rejected)


def read_plan(plan: common_pb2.Plan) -> Plan:
    """The plan's values."""
    return Plan(
        mode=_MODES.get(plan.mode),
        prefill_worker_id=plan.prefill_worker_id,
        decode_worker_id=plan.decode_worker_id,
        matched_tokens=plan.matched_tokens,
        reason=plan.reason,
        prediction=_prediction(plan.prediction) if plan.HasField("prediction") else None,
    )


def _prediction(prediction: common_pb2.Prediction) -> Prediction:
    return Prediction(
        time_to_first_token_s=prediction.time_to_first_token_s,
        time_per_output_token_s=prediction.time_per_output_token_s,
        energy_joules=prediction.energy_joules,
        cost_usd=prediction.cost_usd,
        queue_s=prediction.queue_s,
        prefill_s=prediction.prefill_s,
        transfer_s=prediction.transfer_s,
    )


def _usage(usage: common_pb2.Usage) -> Usage:
    return Usage(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def _timings(timings: common_pb2.Timings) -> Timings:
    return Timings(
        queue_s=timings.queue_s,
        tokenize_s=timings.tokenize_s,
        plan_s=timings.plan_s,
        prefill_s=timings.prefill_s,
        transfer_s=timings.transfer_s,
        decode_s=timings.decode_s,
        time_to_first_token_s=timings.time_to_first_token_s,
        total_s=timings.total_s,
    )
