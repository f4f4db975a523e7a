"""The rule of thumb where no worker has told its rates: the longest cached prefix, then the least load. Pure."""

from collections.abc import Mapping
from typing import Final

from forebay.routing.fleet import Worker
from forebay.routing.in_flight import WorkerLoad
from forebay.routing.option import Mode, Option, PlanRequest

_IDLE: Final = WorkerLoad()


def least_loaded(options: list[Option], loads: Mapping[str, WorkerLoad], tie_break: float) -> Option:
    """One of the best options. tie_break: a number in [0, 1) that chooses among equals."""
    scores = [_score(option, loads) for option in options]
    best_score = min(scores)
    best = [option for option, score in zip(options, scores, strict=True) if score == best_score]
    return best[int(tie_break * len(best))]


def reason_of(request: PlanRequest, option: Option, option_count: int) -> str:
    """Why that one, for a person."""
    tokens = f"{request.prompt_tokens} {'prompt and generated' if request.is_begun else 'prompt'} tokens"
    cached = f"{option.matched_tokens} of {tokens} are cached on {option.decode.node_id}"
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


def _score(option: Option, loads: Mapping[str, WorkerLoad]) -> tuple[int, float, bool, int, float]:
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


def _why_alone(request: PlanRequest, option: Option) -> str:
    if request.is_begun:
        return "going on where another worker stopped"
    if request.forced_mode is Mode.LOCAL:
        return "as was asked for"
    if request.prompt_tokens - option.matched_tokens <= request.alone_tokens:
        return "too little to be worth a hand-over"
    if option.refusal is not None:
        return f"since its node has no prefill worker, and another's cannot be used ({option.refusal})"
    return "since no prefill worker takes new work"
