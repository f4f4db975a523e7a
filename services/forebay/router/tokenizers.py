"""The tokenizer replicas: which model they serve, encoding with a second try, and token streams that outlive a replica.

Knows no request and no plan.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import grpc

from forebay.errors import Code, ForebayError, NoWorkerError, RemoteError
from forebay.fleet.member import Member
from forebay.router.admission import ServedModel
from forebay.router.detokenize_link import DetokenizeLink
from forebay.router.token_stream import TextSink, TokenStream
from forebay.routing.fleet import majority
from forebay.rpc.channel import open_channel
from forebay.rpc.status import translated
from forebay.v1 import tokenizer_pb2, tokenizer_pb2_grpc

_log = logging.getLogger(__name__)

ENCODE_TIMEOUT_S = 10.0
DESCRIBE_TIMEOUT_S = 2.0
DESCRIBE_RETRY_S = 0.5
RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class _Replica:
    member: Member
    channel: grpc.aio.Channel
    stub: "tokenizer_pb2_grpc.TokenizerServiceAsyncStub"
    link: DetokenizeLink
    describing: asyncio.Task[None] | None = None
    model: ServedModel | None = None  # None: it has not said yet

    @property
    def is_usable(self) -> bool:
        return self.link.is_usable and self.model is not None


class Tokenizers:
    """All replicas of the fleet; `on_state` is called when what is usable may have changed."""

    def __init__(self, on_state: Callable[[], None]) -> None:
        self._on_state = on_state
        self._replicas: dict[str, _Replica] = {}
        self._stream_ids = itertools.count(1)
        self._link_of: dict[int, DetokenizeLink] = {}
        self._orphans: list[TokenStream] = []  # replayed as soon as a replica can be used
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def is_ready(self) -> bool:
        """Whether a replica can be used."""
        return any(replica.is_usable for replica in self._replicas.values())

    def model(self) -> ServedModel:
        """What the fleet serves: what most replicas say.

        Raises:
            NoWorkerError: no tokenizer can be reached.
        """
        return self._usable()[0].model  # type: ignore[return-value]  # usable ones have said

    async def encode(self, model: str, encode_input: tokenizer_pb2.EncodeInput) -> list[int]:
        """Token ids; a replica that cannot be reached is passed over.

        Raises:
            ForebayError: the input was refused, or no replica could be reached.
        """
        request = tokenizer_pb2.EncodeRequest(model=model, input=encode_input)
        lost: ForebayError | None = None
        for replica in self._usable():
            try:
                with translated():
                    response = await replica.stub.Encode(request, timeout=ENCODE_TIMEOUT_S)
            except RemoteError as error:
                if error.code is not Code.UNAVAILABLE:
                    raise
                lost = error
                continue
            return list(response.token_ids)
        raise NoWorkerError("no tokenizer answers", retry_after_s=RETRY_AFTER_S, role="tokenizer") from lost

    def open_stream(self, options: tokenizer_pb2.DetokenizeOptions, sink: TextSink) -> TokenStream:
        """A token stream; nothing is sent before its first tokens."""
        return TokenStream(next(self._stream_ids), options, sink)

    def send(self, stream: TokenStream) -> None:
        """The stream has something new to say."""
        link = self._link_of.get(stream.stream_id)
        if link is None:
            self._place(stream)
        else:
            link.send(stream)

    def forget(self, stream: TokenStream) -> None:
        """Nobody wants this stream's text any more. Call it for every stream, whatever its end."""
        link = self._link_of.pop(stream.stream_id, None)
        if link is not None:
            link.forget(stream)
        elif stream in self._orphans:
            self._orphans.remove(stream)
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

    async def close(self) -> None:
        """Ends all streams and connections."""
        replicas, self._replicas = list(self._replicas.values()), {}
        for replica in replicas:
            await self._close(replica)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _usable(self) -> list[_Replica]:
        """Replicas that serve the fleet's model, those with the fewest streams first, draining ones last."""
        known = [replica for replica in self._replicas.values() if replica.is_usable]
        digest = majority(replica.model.digest for replica in known if replica.model is not None)
        serving = [replica for replica in known if replica.model is not None and replica.model.digest == digest]
        if not serving:
            raise NoWorkerError("no tokenizer can be reached", retry_after_s=RETRY_AFTER_S, role="tokenizer")
        return sorted(serving, key=lambda replica: (replica.member.is_draining, replica.link.stream_count))

    def _place(self, stream: TokenStream) -> None:
        try:
            link = self._usable()[0].link
        except NoWorkerError:
            if stream not in self._orphans:
                self._orphans.append(stream)
            return
        self._link_of[stream.stream_id] = link
        link.send(stream)

    def _replay(self, link: DetokenizeLink, streams: Iterable[TokenStream]) -> None:
        for stream in streams:
            self._link_of.pop(stream.stream_id, None)
            self._orphans.append(stream)
        self._place_orphans()

    def _place_orphans(self) -> None:
        orphans, self._orphans = self._orphans, []
        for stream in orphans:
            self._place(stream)

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
            replica.model = ServedModel(said.model, said.model_digest, said.vocabulary_size, said.context_tokens)
        self._changed()

    def _changed(self) -> None:
        self._place_orphans()
        self._on_state()

    async def _close(self, replica: _Replica) -> None:
        if replica.describing is not None:
            replica.describing.cancel()
        await replica.link.close()
        await replica.channel.close()

    def _spawn(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
