"""Choosing prefill worker, decode worker and mode of one request, together. Pure.

First policy: the longest cached prefix, then the least load; a prefill worker only where there is enough for it to do.
Both workers are on one node, whose memory they share; where that has no prefill worker, one of another node is taken,
if its KV can be converted into the decode worker's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from forebay.errors import RETRY_AFTER_S, LayoutMismatchError, NoWorkerError
from forebay.kv.conversion import plan_conversion
from forebay.kv.hashing import reusable_block_count
from forebay.routing.fleet import FleetSnapshot, Worker
from forebay.routing.in_flight import WorkerLoad
from forebay.routing.prefix_index import NO_MATCH, PrefixMatch

RESUME_MAX_TOKENS: Final = 64  # one chunk: computing so little delays the decode worker's other sequences by one step
DEFAULT_ALONE_TOKENS: Final = 64
"""Prompt tokens that a decode worker computes itself, though there is a prefill worker: they delay its other sequences
by a step or two, which is less than a hand-over costs (docs/adr/009)."""

_IDLE: Final = WorkerLoad()


class Mode(Enum):
    """Which workers compute a request. Meanings: ExecutionMode in common.proto."""

    LOCAL = "LOCAL"
    SPLIT = "SPLIT"
    RESUME = "RESUME"


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What planning needs to know of a request."""

    prompt_tokens: int
    forced_mode: Mode | None = None  # LOCAL or SPLIT; RESUME follows from the cache
    alone_tokens: int = DEFAULT_ALONE_TOKENS  # most that the decode worker computes alone unless told to; 0: none


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision. `prefill_worker_id` is set exactly in SPLIT."""

    mode: Mode
    decode_worker_id: str
    prefill_worker_id: str | None
    matched_tokens: int
    reason: str


@dataclass(frozen=True, slots=True)
class _Option:
    mode: Mode
    decode: Worker
    prefill: Worker | None
    matched_tokens: int
    refusal: str | None = None  # why no prefill worker of another node is used

    @property
    def crosses_nodes(self) -> bool:
        return self.prefill is not None and self.prefill.node_id != self.decode.node_id


def plan(
    request: PlanRequest,
    fleet: FleetSnapshot,
    matches: Mapping[str, PrefixMatch],
    loads: Mapping[str, WorkerLoad],
    tie_break: float,
) -> Plan:
    """Decides.

    Args:
        request: what is asked.
        fleet: workers that can be reached; draining ones get nothing.
        matches: by node, how much of the prompt is cached there.
        loads: by worker; absent means idle.
        tie_break: a random number in [0, 1) that chooses among equally good options.

    Raises:
        NoWorkerError: no worker can take it; the message says what is missing.
    """
    options = [option for decode in fleet.decode for option in _options(request, decode, fleet, matches)]
    if not options:
        raise _no_worker(request, fleet)
    scores = [_score(option, loads) for option in options]
    best_score = min(scores)
    best = [option for option, score in zip(options, scores, strict=True) if score == best_score]
    chosen = best[int(tie_break * len(best))]
    return Plan(
        mode=chosen.mode,
        decode_worker_id=chosen.decode.worker_id,
        prefill_worker_id=None if chosen.prefill is None else chosen.prefill.worker_id,
        matched_tokens=chosen.matched_tokens,
        reason=_reason(request, chosen, len(options)),
    )


def _options(
    request: PlanRequest, decode: Worker, fleet: FleetSnapshot, matches: Mapping[str, PrefixMatch]
) -> Iterator[_Option]:
    """The ways in which this decode worker could serve: one without a prefill worker, or one with each."""
    if decode.is_draining:
        return
    reusable = reusable_block_count(request.prompt_tokens, decode.layout.block_tokens)
    matched_blocks = min(reusable, matches.get(decode.node_id, NO_MATCH).block_count)
    matched_tokens = matched_blocks * decode.layout.block_tokens
    if request.forced_mode is Mode.LOCAL:
        yield _Option(Mode.LOCAL, decode, None, matched_tokens)
        return
    rest_tokens = request.prompt_tokens - matched_tokens
    is_held = matched_blocks == reusable > 0 and rest_tokens <= RESUME_MAX_TOKENS
    if request.forced_mode is None and (is_held or rest_tokens <= request.alone_tokens):
        yield _Option(Mode.RESUME if is_held else Mode.LOCAL, decode, None, matched_tokens)
        return
    partners, refusal = _partners(decode, fleet)
    for prefill in partners:
        yield _Option(Mode.SPLIT, decode, prefill, matched_tokens)
    if not partners and request.forced_mode is None:
        yield _Option(Mode.LOCAL, decode, None, matched_tokens, refusal)


def _partners(decode: Worker, fleet: FleetSnapshot) -> tuple[list[Worker], str | None]:
    """Prefill workers for a decode worker: of its node, else of others; if there are none, why those were refused."""
    alike = [one for one in fleet.prefill if not one.is_draining and one.model_digest == decode.model_digest]
    on_node = [one for one in alike if one.node_id == decode.node_id and one.layout == decode.layout]
    if on_node:
        return on_node, None
    elsewhere = [one for one in alike if one.node_id != decode.node_id]
    refusals = {one.worker_id: _refusal(one, decode) for one in elsewhere}
    partners = [one for one in elsewhere if refusals[one.worker_id] is None]
    return partners, next(filter(None, refusals.values()), None)


def _refusal(prefill: Worker, decode: Worker) -> str | None:
    """Why blocks of one cannot become blocks of the other; None: they can."""
    try:
        plan_conversion((prefill.layout,), decode.layout)
    except LayoutMismatchError as error:
        return error.message
    return None


def _score(option: _Option, loads: Mapping[str, WorkerLoad]) -> tuple[int, float, bool, int, float]:
    """Smaller is better. Of equally busy decode workers one that shares memory with its prefill worker is best."""
    computes = option.prefill or option.decode
    return (
        -option.matched_tokens,
        _fullness(option.decode, loads),
        option.crosses_nodes,
        loads.get(computes.worker_id, _IDLE).queued_tokens,
        _fullness(computes, loads),
    )


def _fullness(worker: Worker, loads: Mapping[str, WorkerLoad]) -> float:
    return loads.get(worker.worker_id, _IDLE).sequences / max(1, worker.max_sequences)


def _reason(request: PlanRequest, option: _Option, option_count: int) -> str:
    cached = f"{option.matched_tokens} of {request.prompt_tokens} prompt tokens are cached on {option.decode.node_id}"
    match option.mode:
        case Mode.RESUME:
            what = "so the decode worker computes the rest"
        case Mode.SPLIT if option.crosses_nodes and option.prefill is not None:
            what = f"a prefill worker of node {option.prefill.node_id} computes the rest, and its KV is brought"
        case Mode.SPLIT:
            what = "a prefill worker computes the rest"
        case Mode.LOCAL:
            what = f"the decode worker computes the rest, {_why_alone(request, option)}"
    choice = "the only option" if option_count == 1 else f"longest prefix, then least load, of {option_count} options"
    return f"{option.mode.value}: {cached}; {what}; {choice}."


def _why_alone(request: PlanRequest, option: _Option) -> str:
    if request.forced_mode is Mode.LOCAL:
        return "as was asked for"
    if request.prompt_tokens - option.matched_tokens <= request.alone_tokens:
        return "too little to be worth a hand-over"
    if option.refusal is not None:
        return f"since its node has no prefill worker, and another's cannot be used ({option.refusal})"
    return "since no prefill worker takes new work"


def _no_worker(request: PlanRequest, fleet: FleetSnapshot) -> NoWorkerError:
    if all(worker.is_draining for worker in fleet.decode):
        return NoWorkerError("no decode worker takes new work", retry_after_s=RETRY_AFTER_S, role="decode")
    assert request.forced_mode is Mode.SPLIT
    refusals = (_partners(decode, fleet)[1] for decode in fleet.decode if not decode.is_draining)
    refusal = next(filter(None, refusals), "no prefill worker takes new work")
    return NoWorkerError(
        f"mode SPLIT was asked for, but no prefill worker can serve a decode worker: {refusal}",
        retry_after_s=RETRY_AFTER_S,
        role="prefill",
    )
