"""One plan of a request carried out: prefill, hand-over, decode, until it ends or its worker fails.

Knows the workers, not the answer: what they say goes to its sink. Whatever ends it, `release` leaves nothing at any
worker, and nothing is said afterwards.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from forebay.errors import DrainingError, ForebayError
from forebay.router.decode_link import DecodeLink
from forebay.router.early_bring import EarlyBring
from forebay.router.prefill_call import PrefillCall
from forebay.router.prefill_link import PrefillLink
from forebay.router.prompt import Prompt
from forebay.routing.plan import Plan
from forebay.rpc.deadline import remaining_s
from forebay.rpc.status import from_failure
from forebay.telemetry import inject
from forebay.v1 import common_pb2, decode_pb2, prefill_pb2

LEAST_DEADLINE_S: Final = 0.001  # of a request whose deadline passes at this very moment
MAX_SEQUENCE_ID_CHARACTERS: Final = 128


@dataclass(frozen=True, slots=True)
class LeftBehind:
    """A sequence that lies whole in a node's memory, though its worker is lost or drains: another can take it over."""

    worker_id: str
    sequence_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Workers:
    """Who computes; without `prefill` the decode worker does it all.

    `taker`: who decodes a prefilled sequence now: `decode`, or another of its node's when that one leaves.
    `kvcache_address`: by node, where blocks can be pulled from. `early_bring`: brings the prompt's blocks to the decode
    worker's node while they are computed on another; None: on the same, or it cannot. `left_behind`: what the attempt
    before left on the decode worker's node, which that takes over; None: nothing. is_alone: the decode worker takes
    nothing else meanwhile.
    """

    decode: DecodeLink
    prefill: PrefillLink | None
    taker: Callable[[], DecodeLink | None]
    kvcache_address: Callable[[str], str | None]
    early_bring: EarlyBring | None = None
    left_behind: LeftBehind | None = None
    is_alone: bool = False


class AttemptSink(Protocol):
    """Who waits for the tokens. Called on the loop; must not block."""

    def on_first_token(self, first: prefill_pb2.FirstToken) -> None:
        """The prefill worker sampled."""
        ...

    def on_output(self, output: decode_pb2.SequenceOutput) -> None:
        """The decode worker has news."""
        ...

    def on_lost(self, error: ForebayError) -> None:
        """A worker ended, fell silent, or failed its call; there is no more news."""
        ...


class AttemptWatch(Protocol):
    """Who keeps account of workers."""

    def prefilled(self) -> None:
        """The prompt is computed."""
        ...

    def succeeded(self, worker_id: str) -> None:
        """The worker has made a token."""
        ...

    def failed(self, worker_id: str, error: ForebayError) -> None:
        """The worker could not do, or go on with, its part."""
        ...

    def let_go(self) -> None:
        """All is over."""
        ...


class Attempt:
    """`begin`, then `sink` is told; `release` in any case.

    emitted_token_ids: what earlier attempts generated. chosen: the plan.
    """

    def __init__(
        self,
        prompt: Prompt,
        workers: Workers,
        emitted_token_ids: Sequence[int],
        chosen: Plan,
        watch: AttemptWatch,
    ) -> None:
        self.chosen = chosen
        self._watch = watch
        self._at = chosen.prefill_worker_id or chosen.decode_worker_id  # the worker that has it
        self._has_token_of: str | None = None
        self._prompt = prompt
        self._workers = workers
        self._emitted_token_ids = list(emitted_token_ids)
        self._decode = workers.decode
        left = workers.left_behind
        self._sequence_id = _sequence_id(prompt.request.request_id) if left is None else left.sequence_id
        self._kv_epoch = 0  # as its worker told it
        self._traceparent = inject()
        self._prefill: PrefillCall | None = None
        self._sink: AttemptSink | None = None
        self._is_prefilled = self._is_released = False
        self.is_over = False  # no (more) news
        self.left_behind: LeftBehind | None = None  # where its decode worker was lost

    def begin(self, sink: AttemptSink) -> None:
        """Sends the prompt to its first worker. Does not wait."""
        self._sink = sink
        if self._workers.prefill is None:
            self._decode.start(self._start_sequence(), self)
            return
        assert not self._emitted_token_ids
        request = prefill_pb2.PrefillRequest(
            request_id=self._sequence_id,
            token_ids=self._prompt.token_ids,
            sampling=self._prompt.sampling,
            tenant=self._prompt.request.tenant,
            cache_salt=self._prompt.request.cache_salt,
            qos_tier=self._prompt.request.qos_tier,
            seals_as_filled=self._workers.early_bring is not None,
        )
        self._prefill = self._workers.prefill.call(request, self)

    def end_decode(self) -> bool:
        """The answer is complete before the worker's end of it. True: the worker's last word comes, with its counts."""
        if self._prefill is not None:
            self._prefill.abandon(self._release_handed_over)
        if self.is_over or not self._decode.has(self._sequence_id):
            return False
        self._decode.cancel(self._sequence_id)
        return True

    def release(self) -> None:
        """Frees everything at every worker. Does not wait. Idempotent."""
        self._sink = None
        if self._prefill is not None:
            self._prefill.abandon(self._release_handed_over)
        self._decode.abandon(self._sequence_id)
        self._end_early_bring()
        self._is_released = True
        self._watch.let_go()

    def on_begun(self) -> None:
        """The prefill worker computes and seals."""
        if self._workers.early_bring is not None:
            self._workers.early_bring.start(self._sequence_id)

    def on_first_token(self, first: prefill_pb2.FirstToken) -> None:
        """The prefill worker sampled."""
        self._emitted_token_ids.append(first.token_id)
        self.is_over = bool(first.finish_reason)
        self._note_prefilled()
        self._note_token()
        if self._sink is not None:
            self._sink.on_first_token(first)

    def on_manifest(self, manifest: common_pb2.Manifest) -> None:
        """The prefill worker handed over."""
        self._kv_epoch = manifest.epoch  # whoever took the sequence over with it is known by it too
        self._decode = self._taker()
        self._at = self._decode.worker_id
        self._decode.start(self._taking_over(manifest), self)

    def on_output(self, output: decode_pb2.SequenceOutput) -> None:
        """The decode worker has news."""
        self._end_early_bring()  # its sequence holds the blocks now
        self._note_prefilled()
        self._kv_epoch = output.kv_epoch or self._kv_epoch
        has_failed = output.HasField("error")
        if output.finish_reason or has_failed:
            self.is_over = True
        if has_failed:
            self._watch.failed(self._at, from_failure(output.error))
        elif output.token_ids:
            self._note_token()
        if has_failed and output.error.reason == DrainingError.reason and output.kv_epoch:
            self.left_behind = LeftBehind(self._decode.worker_id, self._sequence_id, output.kv_epoch)
        if self._sink is not None:
            self._sink.on_output(output)

    def on_lost(self, error: ForebayError) -> None:
        """A worker was lost."""
        self.is_over = True
        if not self._is_released:
            self._watch.failed(self._at, error)
        if self._kv_epoch:
            self.left_behind = LeftBehind(self._decode.worker_id, self._sequence_id, self._kv_epoch)
        if self._sink is not None:
            self._sink.on_lost(error)

    def _note_prefilled(self) -> None:
        if not self._is_prefilled and not self._is_released:
            self._is_prefilled = True
            self._watch.prefilled()

    def _note_token(self) -> None:
        if self._has_token_of != self._at and not self._is_released:
            self._has_token_of = self._at
            self._watch.succeeded(self._at)

    def _end_early_bring(self) -> None:
        if self._workers.early_bring is not None:
            self._workers.early_bring.close()

    def _start_sequence(self) -> decode_pb2.StartSequence:
        left_s = remaining_s()
        return decode_pb2.StartSequence(
            request_id=self._sequence_id,
            prompt_token_ids=self._prompt.token_ids,
            emitted_token_ids=self._emitted_token_ids,
            sampling=self._prompt.sampling,
            tenant=self._prompt.request.tenant,
            cache_salt=self._prompt.request.cache_salt,
            qos_tier=common_pb2.QOS_TIER_BACKUP if self._workers.is_alone else self._prompt.request.qos_tier,
            deadline_s=None if left_s is None else max(left_s, LEAST_DEADLINE_S),
            traceparent=self._traceparent.get("traceparent", ""),
            tracestate=self._traceparent.get("tracestate", ""),
            gather_ms=self._prompt.request.gather_ms,
            left_behind_epoch=None if self._workers.left_behind is None else self._workers.left_behind.epoch,
        )

    def _taking_over(self, manifest: common_pb2.Manifest) -> decode_pb2.StartSequence:
        start = self._start_sequence()
        start.manifest.CopyFrom(manifest)
        # The prefill worker knows its service as it is reached on their own node.
        start.manifest.kvcache_address = self._workers.kvcache_address(manifest.node_id) or manifest.kvcache_address
        return start

    def _release_handed_over(self, manifest: common_pb2.Manifest) -> None:
        """The sequence waits for an owner that will not come: a decode worker of its node takes it and lets it go.

        On another node nobody can: there the offer runs out by itself, within a second.
        """
        self._taker().start_abandoned(self._taking_over(manifest))

    def _taker(self) -> DecodeLink:
        # The blocks go to the planned node. When nobody there can go on, the link of the plan says why.
        return self._workers.taker() or self._workers.decode


def _sequence_id(request_id: str) -> str:
    """A name of this attempt alone: while the workers end a request, the next of its id may have begun."""
    nonce = f".{secrets.token_hex(8)}"
    return request_id[: MAX_SEQUENCE_ID_CHARACTERS - len(nonce)] + nonce
