"""The life of one request: judged, encoded, admitted, planned, carried out, measured. One trace shows it.

Knows the order of things; what each is lies with `request`, `prompt_limits`, `tokenizers`, `attempts` and `execution`.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from opentelemetry.trace import get_current_span

from forebay.errors import ForebayError, NoWorkerError
from forebay.router.admission_gate import AdmissionGate, Ticket
from forebay.router.applicant import applicant_of
from forebay.router.attempt import Attempt
from forebay.router.attempts import Attempts
from forebay.router.execution import Execution
from forebay.router.fleet_links import FleetLinks
from forebay.router.health import Health
from forebay.router.planner import NoneFreeError, Planner
from forebay.router.prompt import Prompt
from forebay.router.prompt_limits import admit, check_model
from forebay.router.request import Request, validate
from forebay.router.running import RunningRequests
from forebay.routing.demand import Demand, DemandWindow
from forebay.routing.failover import MOST_DELAY_S, Failover, FailoverLimits
from forebay.routing.option import QosTier
from forebay.routing.outcome import Outcome
from forebay.routing.plan import Plan
from forebay.routing.service_level import refusal
from forebay.telemetry import span, spans, tracer
from forebay.v1 import common_pb2, decode_pb2, router_pb2
from forebay.wire.plan import plan_to_proto

_Made = TypeVar("_Made")


@dataclass(slots=True)
class _Clock:
    """Seconds of this request, by the router's clock."""

    began_s: float
    tokenize_s: float = 0.0
    admit_s: float = 0.0
    plan_s: float = 0.0
    planned_s: float = 0.0
    first_token_s: float | None = None

    def since_begin_s(self) -> float:
        return time.perf_counter() - self.began_s


class Generations:
    """Serves requests of one router."""

    def __init__(
        self,
        links: FleetLinks,
        planner: Planner,
        failover_limits: FailoverLimits,
        gate: AdmissionGate,
        health: Health,
    ) -> None:
        self._health = health
        self._links = links
        self._planner = planner
        self._failover_limits = failover_limits
        self._gate = gate
        self._demand = DemandWindow(time.monotonic())
        self.running = RunningRequests()

    async def generate(self, message: router_pb2.GenerateRequest) -> AsyncGenerator[router_pb2.GenerateResponse, None]:
        """Started, chunks, Finished. Raises ForebayError; frees everything when closed or cancelled at any point."""
        clock = _Clock(began_s=time.perf_counter())
        request = validate(message)
        ender = _Ender()
        with self.running.registered(request.request_id, ender.end, takes_over=request.received is not None):
            failover = Failover(self._failover_limits, has_begun=request.has_begun)
            waiting = _Waiting(failover, partial(self._is_worth_waiting, request), ender)
            prompt = await self._prompt(request, waiting, clock)
            if not request.has_begun:
                self._demand.arrived(len(prompt.token_ids), time.monotonic())
            async with self._admitted(prompt, ender, clock) as ticket:
                attempts = Attempts(prompt, self._links, self._planner, failover, self._health)
                execution = Execution(prompt, self._links.tokenizers, attempts.next, failover)
                ender.attach(execution)
                with _released(execution):
                    await execution.recall()
                    chosen = None
                    if not execution.output.is_text_complete:
                        began_s = time.perf_counter()
                        first = await waiting.until_possible(partial(attempts.next, execution.output.token_ids))
                        clock.plan_s = time.perf_counter() - began_s
                        clock.planned_s = clock.since_begin_s()
                        chosen = first.chosen
                        if ticket is not None:
                            self._check_promise(prompt, first)
                            ticket.planned()
                        execution.begin(first)
                    yield router_pb2.GenerateResponse(started=_started(prompt, chosen))
                    async with aclosing(execution.chunks()) as chunks:
                        async for chunk in chunks:
                            if clock.first_token_s is None and chunk.token_ids:
                                clock.first_token_s = clock.since_begin_s()
                            yield router_pb2.GenerateResponse(chunk=chunk)
                    if chosen is not None and not request.has_begun and execution.failover_count == 0:
                        self._planner.learn(chosen, _outcome(prompt, execution, clock))
                    finished = _finished(prompt, chosen, execution, clock)
                    if not request.has_begun:
                        usage = finished.usage
                        self._demand.answered(usage.cached_tokens, usage.completion_tokens, time.monotonic())
                    yield router_pb2.GenerateResponse(finished=finished)

    def explain(self, request_id: str) -> Plan:
        """The last plan of a recent request. Raises UnknownRequestError when it is not known any more."""
        return self._planner.explanations.of(request_id)

    def demand(self) -> Demand:
        """What was asked of this router lately."""
        return self._demand.demand(time.monotonic())

    async def _prompt(self, request: Request, waiting: "_Waiting", clock: _Clock) -> Prompt:
        """The prompt's tokens, from the tokenizer unless the caller gave them, fit for the model."""
        tokenizers = self._links.tokenizers
        model = await waiting.until_possible(tokenizers.model)
        check_model(request, model)
        get_current_span().set_attributes(
            {
                spans.OPERATION_NAME: "chat" if request.input_field == "chat" else "text_completion",
                spans.REQUEST_MODEL: model.name,
                spans.REQUEST_ID: request.request_id,
                spans.QOS_TIER: common_pb2.QosTier.Name(request.qos_tier).removeprefix("QOS_TIER_"),
            }
        )
        token_ids: Sequence[int] = request.token_ids or ()
        if request.encode_input is not None:
            began_s = time.perf_counter()
            with span(spans.TOKENIZE) as current:
                token_ids = await tokenizers.encode(request.model, request.encode_input)
                current.set_attribute(spans.INPUT_TOKENS, len(token_ids))
            clock.tokenize_s = time.perf_counter() - began_s
        sampling = admit(request, token_ids, model)
        get_current_span().set_attributes(
            {spans.INPUT_TOKENS: len(token_ids), spans.REQUEST_MAX_TOKENS: sampling.max_tokens}
        )
        return Prompt(request, token_ids, sampling, model.vocabulary_size, model.digest)

    @asynccontextmanager
    async def _admitted(self, prompt: Prompt, ender: "_Ender", clock: _Clock) -> AsyncIterator[Ticket | None]:
        """Inside the block the request may begin, and counts as one that runs. None: it was accepted once already."""
        request = prompt.request
        if request.has_begun:
            yield None
            return
        least = self._planner.least(request, prompt.token_ids) if self._gate.is_tight else None
        async with self._gate.applying(applicant_of(prompt, least)) as ticket:
            ender.attach(ticket)
            if ticket.is_waiting:
                with span(spans.ADMIT):
                    began_s = time.perf_counter()
                    await ticket.admitted()
                    clock.admit_s = time.perf_counter() - began_s
            await ticket.admitted()  # or else it was refused at once
            yield ticket

    def _check_promise(self, prompt: Prompt, first: Attempt) -> None:
        """Gives the attempt up and raises QueueFullError or SloUnattainableError where REALTIME would be too late."""
        request, planned = prompt.request, first.chosen.prediction
        if request.tier is not QosTier.REALTIME or planned is None:
            return
        asked = None if request.slo is None or request.slo.accepts_miss else request.slo.target
        least = partial(self._planner.least, request, prompt.token_ids)
        error = refusal(asked, self._gate.limits.shed_after_s, planned, least)
        if error is not None:
            first.release()
            raise error

    def _is_worth_waiting(self, request: Request) -> bool:
        """Where a worker was lost just now, another may take its place; and what has begun was accepted once."""
        return request.has_begun or self._links.has_lost_worker_within(self._failover_limits.patience_s)


class Endable(Protocol):
    """What a request is at the moment."""

    def end(self, error: ForebayError) -> None:
        """Its caller is to hear this."""
        ...


class _Ender:
    """Ends a request from elsewhere, also before there is anything to end."""

    def __init__(self) -> None:
        self._endable: Endable | None = None
        self._error: ForebayError | None = None

    def attach(self, endable: Endable) -> None:
        """This is what there is to end, from now on."""
        self._endable = endable
        if self._error is not None:
            endable.end(self._error)

    def raise_if_ended(self) -> None:
        if self._error is not None:
            raise self._error

    def end(self, error: ForebayError) -> None:
        self._error = error
        if self._endable is not None:
            self._endable.end(error)


class _Waiting:
    """For services that a request cannot begin without."""

    def __init__(self, failover: Failover, is_worth_it: Callable[[], bool], ender: _Ender) -> None:
        self._failover = failover
        self._is_worth_it = is_worth_it
        self._ender = ender

    async def until_possible(self, make: Callable[[], _Made]) -> _Made:
        """What `make` makes, as soon as it can. Raises NoWorkerError where that is not waited for, or no longer."""
        while True:
            try:
                return make()
            except NoneFreeError:
                await asyncio.sleep(MOST_DELAY_S)  # for its turn it waits as long as its caller does
                self._ender.raise_if_ended()
            except NoWorkerError as error:
                if not self._is_worth_it():
                    raise
                await asyncio.sleep(self._failover.delay_s(error, None, time.monotonic()))
                self._ender.raise_if_ended()


@contextmanager
def _released(execution: Execution) -> Iterator[None]:
    try:
        yield
    finally:
        execution.release()
        _trace_text(execution)


def _trace_text(execution: Execution) -> None:
    """One span for all text of the request, made at its end: a span per message would cost more than the message."""
    if execution.text_began_ns is None:
        return
    summary = tracer().start_span(spans.DETOKENIZE, start_time=execution.text_began_ns)
    summary.set_attribute(spans.OUTPUT_TOKENS, execution.output.token_count)
    summary.end(end_time=execution.text_ended_ns)


def _started(prompt: Prompt, chosen: Plan | None) -> router_pb2.Started:
    return router_pb2.Started(
        request_id=prompt.request.request_id,
        trace_id=f"{get_current_span().get_span_context().trace_id:032x}",
        plan=None if chosen is None else plan_to_proto(chosen),
        prompt_tokens=len(prompt.token_ids),
        seed=prompt.sampling.seed,
        model_digest=prompt.model_digest,
    )


def _outcome(prompt: Prompt, execution: Execution, clock: _Clock) -> Outcome:
    first, summary = execution.first_token, execution.summary or decode_pb2.DecodeSummary()
    computing = first or summary
    return Outcome(
        prompt_tokens=len(prompt.token_ids),
        computed_tokens=first.computed_tokens if first else summary.computed_prompt_tokens,
        queue_s=computing.queue_s,
        prefill_s=computing.prefill_s,
        decode_s=summary.decode_s,
        decode_steps=summary.decode_steps,
        time_to_first_token_s=None if clock.first_token_s is None else clock.first_token_s - clock.planned_s,
    )


def _finished(prompt: Prompt, chosen: Plan | None, execution: Execution, clock: _Clock) -> router_pb2.Finished:
    first, summary = execution.first_token, execution.summary
    # In SPLIT the decode worker finds in its cache what the prefill worker has just put there: that is no reuse.
    cached_tokens = first.cached_tokens if first else summary.cached_tokens if summary else 0
    if chosen is not None and first is None and execution.failover_count:
        # The last worker also found what the first had computed; what that had found only the plan still knows.
        cached_tokens = min(cached_tokens, chosen.matched_tokens)
    timings = common_pb2.Timings(
        queue_s=clock.admit_s + (first.queue_s if first else 0.0) + (summary.queue_s if summary else 0.0),
        tokenize_s=clock.tokenize_s,
        plan_s=clock.plan_s,
        prefill_s=(first.prefill_s if first else 0.0) + (summary.prefill_s if summary else 0.0),
        transfer_s=summary.transfer_s if summary else 0.0,
        decode_s=summary.decode_s if summary else 0.0,
        time_to_first_token_s=clock.first_token_s or 0.0,
        total_s=clock.since_begin_s(),
    )
    get_current_span().set_attributes(
        {
            spans.OUTPUT_TOKENS: execution.output.token_count,
            spans.CACHED_TOKENS: cached_tokens,
            spans.FINISH_REASONS: (
                common_pb2.FinishReason.Name(execution.finish_reason).removeprefix("FINISH_REASON_").lower(),
            ),
            spans.TTFT_S: timings.time_to_first_token_s,
            spans.FAILOVERS: execution.failover_count,
            spans.RESUMED_TOKENS: execution.output.received_count,
        }
    )
    return router_pb2.Finished(
        finish_reason=execution.finish_reason,
        failover_count=execution.failover_count,
        recomputed_tokens=execution.recomputed_tokens,
        stop_match=execution.output.stop_match,
        usage=common_pb2.Usage(
            prompt_tokens=len(prompt.token_ids),
            completion_tokens=execution.output.token_count,
            cached_tokens=cached_tokens,
        ),
        timings=timings,
    )
