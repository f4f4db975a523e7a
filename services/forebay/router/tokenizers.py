"""The tokenizer replicas: which model they serve, encoding with a second try, and token streams that outlive a replica.

Knows no request and no plan.
"""

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final

import grpc

from forebay.errors import RETRY_AFTER_S, Code, ForebayError, NoWorkerError, WorkerLostError
from forebay.fleet.member import Member
from forebay.router.detokenize_link import DetokenizeLink
from forebay.router.prompt_limits import DescribedModel
from forebay.router.replayable_tokens import ReplayableTokens, TextSink
from forebay.routing.fleet import majority
from forebay.rpc.channel import open_channel
from forebay.rpc.deadline import remaining_s
from forebay.rpc.status import translated
from forebay.tasks import end_task
from forebay.v1 import tokenizer_pb2, tokenizer_pb2_grpc

ENCODE_BYTES_PER_S: Final = 200_000  # far slower than a replica that is alive
DESCRIBE_TIMEOUT_S: Final = 2.0
DESCRIBE_RETRY_S: Final = 0.5

_LOST_CODES: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNKNOWN})


@dataclass(frozen=True, slots=True)
class Patience:
    """How long replicas are waited for, seconds.

    encode_s: for an answer, while another replica is left to ask; last_encode_s: when none is. Longer for a long text.
    replay_s: for a replica, by a token stream that lost its own.
    """

    encode_s: float = 2.0
    last_encode_s: float = 10.0
    replay_s: float = 5.0


@dataclass(slots=True)
class _Replica:
    member: Member
    channel: grpc.aio.Channel
    stub: "tokenizer_pb2_grpc.TokenizerServiceAsyncStub"
    link: DetokenizeLink
    describing: asyncio.Task[None] | None = None
    model: DescribedModel | None = None  # None: it has not said yet

    @property
    def is_usable(self) -> bool:
        return self.link.is_usable and self.model is not None

    async def encode(self, request: tokenizer_pb2.EncodeRequest, timeout_s: float) -> list[int]:
        """Token ids. Raises WorkerLostError when no answer comes, in time or at all."""
        try:
            with translated():
                response = await self.stub.Encode(request, timeout=timeout_s)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise self._lost("it left the fleet") from None  # its channel was closed under the call
        except ForebayError as error:
            if error.code not in _LOST_CODES or remaining_s() == 0:
                raise
            raise self._lost(error.message) from error
        return list(response.token_ids)

    def _lost(self, why: str) -> WorkerLostError:
        message = f"tokenizer {self.member.worker_id} was lost: {why}"
        return WorkerLostError(message, retry_after_s=RETRY_AFTER_S, worker_id=self.member.worker_id)


class Tokenizers:
    """All replicas of the fleet; `on_state` is called when what is usable may have changed."""

    def __init__(self, on_state: Callable[[], None], patience: Patience | None = None) -> None:
        self._on_state = on_state
        self._patience = patience or Patience()
        self._replicas: dict[str, _Replica] = {}
        self._serving: tuple[_Replica, ...] = ()  # the usable ones of the fleet's model
        self._stream_ids = itertools.count(1)
        self._link_of: dict[int, DetokenizeLink] = {}
        self._orphans: dict[ReplayableTokens, asyncio.TimerHandle] = {}  # replayed as soon as a replica can be used
        self._closing: set[asyncio.Task[None]] = set()

    def model(self) -> DescribedModel:
        """What the fleet serves: what most replicas say.

        Raises:
            NoWorkerError: no tokenizer can be reached.
        """
        return self._usable()[0].model  # type: ignore[return-value]  # usable ones have said

    async def encode(self, model: str, encode_input: tokenizer_pb2.EncodeInput) -> list[int]:
        """Token ids; a replica that does not answer is passed over.

        Raises:
            NoWorkerError: none answers.
            ForebayError: the input was refused, or the request's deadline passed.
        """
        request = tokenizer_pb2.EncodeRequest(model=model, input=encode_input)
        lost: ForebayError | None = None
        usable = self._usable()
        for replica in usable:
            patience_s = self._patience.last_encode_s if replica is usable[-1] else self._patience.encode_s
            try:
                return await replica.encode(request, patience_s + request.ByteSize() / ENCODE_BYTES_PER_S)
            except WorkerLostError as error:
                lost = error
        raise NoWorkerError("no tokenizer answers", retry_after_s=RETRY_AFTER_S, role="tokenizer") from lost

    def open_stream(self, options: tokenizer_pb2.DetokenizeOptions, sink: TextSink) -> ReplayableTokens:
        """A token stream; nothing is sent before its first tokens."""
        return ReplayableTokens(next(self._stream_ids), options, sink)

    def send(self, stream: ReplayableTokens) -> None:
        """The stream has something new to say."""
        link = self._link_of.get(stream.stream_id)
        if link is None:
            self._place(stream)
        else:
            link.send(stream)

    def forget(self, stream: ReplayableTokens) -> None:
        """Nobody wants this stream's text any more. Call it for every stream, whatever its end."""
        link = self._link_of.pop(stream.stream_id, None)
        if link is not None:
            link.forget(stream)
        elif stream in self._orphans:
            self._orphans.pop(stream).cancel()
        stream.is_done = True

    def update(self, members: Iterable[Member]) -> None:
        """The fleet's tokenizers are these now."""
        wanted = {member.worker_id: member for member in members}
        for worker_id in self._replicas.keys() - wanted.keys():
            self._spawn(self._close(self._replicas.pop(worker_id)))
        for worker_id in wanted.keys() - self._replicas.keys():
            self._replicas[worker_id] = self._open(wanted[worker_id])
        for worker_id, member in wanted.items():
            self._replicas[worker_id].member = member
        self._look()

    async def close(self) -> None:
        """Ends all streams and connections."""
        replicas, self._replicas = list(self._replicas.values()), {}
        self._look()
        for replica in replicas:
            await self._close(replica)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _usable(self) -> list[_Replica]:
        """Replicas that serve the fleet's model, those with the fewest streams first, draining ones last."""
        if not self._serving:
            raise NoWorkerError("no tokenizer can be reached", retry_after_s=RETRY_AFTER_S, role="tokenizer")
        return sorted(self._serving, key=lambda replica: (replica.member.is_draining, replica.link.stream_count))

    def _look(self) -> None:
        """Which replicas serve may have changed."""
        known = [replica for replica in self._replicas.values() if replica.is_usable]
        digest = majority(replica.model.digest for replica in known if replica.model is not None)
        self._serving = tuple(one for one in known if one.model is not None and one.model.digest == digest)

    def _place(self, stream: ReplayableTokens) -> None:
        try:
            link = self._usable()[0].link
        except NoWorkerError:
            self._wait_for_replica(stream)
            return
        if stream in self._orphans:
            self._orphans.pop(stream).cancel()
        self._link_of[stream.stream_id] = link
        link.send(stream)

    def _replay(self, link: DetokenizeLink, streams: Iterable[ReplayableTokens]) -> None:
        for stream in streams:
            self._link_of.pop(stream.stream_id, None)
            self._wait_for_replica(stream)
        self._place_orphans()

    def _wait_for_replica(self, stream: ReplayableTokens) -> None:
        if stream not in self._orphans:
            loop = asyncio.get_running_loop()
            self._orphans[stream] = loop.call_later(self._patience.replay_s, self._give_up, stream)

    def _place_orphans(self) -> None:
        for stream in list(self._orphans):
            self._place(stream)

    def _give_up(self, stream: ReplayableTokens) -> None:
        del self._orphans[stream]
        stream.fail(NoWorkerError("no tokenizer is left", retry_after_s=RETRY_AFTER_S, role="tokenizer"))

    def _open(self, member: Member) -> _Replica:
        channel = open_channel(member.address)
        link = DetokenizeLink(member.worker_id, channel, self._changed, self._replay)
        replica = _Replica(member, channel, tokenizer_pb2_grpc.TokenizerServiceStub(channel), link)
        link.open()
        replica.describing = asyncio.get_running_loop().create_task(self._describe(replica), name="describe-tokenizer")
        return replica

    async def _describe(self, replica: _Replica) -> None:
        """Asks a replica what it serves until it answers."""
        while replica.model is None:
            try:
                with translated():
                    said = await replica.stub.GetTokenizer(
                        tokenizer_pb2.GetTokenizerRequest(), timeout=DESCRIBE_TIMEOUT_S
                    )
            except ForebayError:
                await asyncio.sleep(DESCRIBE_RETRY_S)
                continue
            replica.model = DescribedModel(said.model, said.model_digest, said.vocabulary_size, said.context_tokens)
        self._changed()

    def _changed(self) -> None:
        self._look()
        self._place_orphans()
        self._on_state()

    async def _close(self, replica: _Replica) -> None:
        if replica.describing is not None:
            await end_task(replica.describing)
        await replica.link.close()
        await replica.channel.close()

    def _spawn(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
