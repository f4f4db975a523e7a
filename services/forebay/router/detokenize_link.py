"""All token streams of this router on one tokenizer, over one stream: one message each way per turn of the loop.

Knows items and answers by their order. When the stream breaks, its token streams are handed back to be replayed, here
or elsewhere.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from forebay.errors import Code, ForebayError
from forebay.router.link import Link
from forebay.router.replayable_tokens import ReplayableTokens, Sent
from forebay.v1 import tokenizer_pb2, tokenizer_pb2_grpc

Replay = Callable[["DetokenizeLink", Iterable[ReplayableTokens]], None]


class DetokenizeLink:
    """The stream to one tokenizer."""

    def __init__(self, worker_id: str, channel: Any, on_state: Callable[[], None], replay: Replay) -> None:
        self.worker_id = worker_id
        self._replay = replay
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(channel)
        self._streams: dict[int, ReplayableTokens] = {}
        self._unsent: dict[int, ReplayableTokens] = {}
        self._forgotten: list[int] = []  # abandoned streams that the tokenizer still holds
        self._under_way: deque[list[Sent | None]] = deque()  # None: an abandoned stream's last item
        self._under_way_ids: set[int] = set()
        self._link = Link[tokenizer_pb2.DetokenizeRequest, tokenizer_pb2.DetokenizeResponse](
            f"detokenize-{worker_id}", stub.Detokenize, self, on_state
        )

    @property
    def is_usable(self) -> bool:
        """Whether the stream is open or has not failed yet."""
        return self._link.is_usable

    @property
    def stream_count(self) -> int:
        """Token streams on it."""
        return len(self._streams)

    def open(self) -> None:
        """Opens the stream in the background."""
        self._link.start()

    def send(self, stream: ReplayableTokens) -> None:
        """The stream has something new to say."""
        self._streams[stream.stream_id] = stream
        self._enqueue(stream)

    def forget(self, stream: ReplayableTokens) -> None:
        """Nobody wants this stream's text any more. Unknown ones are ignored."""
        stream.is_done = True
        self._unsent.pop(stream.stream_id, None)
        known = self._streams.pop(stream.stream_id, None)
        if known is not None and stream.is_open and stream.stream_id not in self._under_way_ids:
            self._forget_there(stream.stream_id)

    async def close(self) -> None:
        """Ends the stream; its token streams are handed back."""
        self._link.close()
        await self._link.wait_closed()
        self.on_broken(ForebayError("the tokenizer left the fleet"))

    def take(self) -> tokenizer_pb2.DetokenizeRequest | None:
        """Everything that is new, of all streams, as one message."""
        if not self._unsent and not self._forgotten:
            return None
        taken = [stream.take() for stream in self._unsent.values()]
        self._under_way_ids.update(self._unsent)
        self._unsent.clear()
        items = [item for item, _ in taken]
        items += [tokenizer_pb2.DetokenizeItem(stream_id=stream_id, is_last=True) for stream_id in self._forgotten]
        self._under_way.append([*(sent for _, sent in taken), *(None for _ in self._forgotten)])
        self._forgotten.clear()
        return tokenizer_pb2.DetokenizeRequest(items=items)

    def on_response(self, response: tokenizer_pb2.DetokenizeResponse) -> None:
        """The answer to the oldest message under way."""
        for sent, answer in zip(self._under_way.popleft(), response.items, strict=True):
            if sent is not None:
                self._under_way_ids.discard(answer.stream_id)
                self._on_answer(sent, answer)

    def _on_answer(self, sent: Sent, answer: tokenizer_pb2.DetokenizedText) -> None:
        stream = sent.stream
        was_forgotten = stream.is_done
        is_known_there = not sent.is_last and not answer.HasField("stop_match")
        stream.on_answer(sent, answer)
        if stream.is_done:
            self._streams.pop(stream.stream_id, None)
            if was_forgotten and is_known_there:
                self._forget_there(stream.stream_id)
        elif stream.has_unsent:
            self._enqueue(stream)

    def _enqueue(self, stream: ReplayableTokens) -> None:
        # One item per stream under way: the tokenizer forgets a stream that met a stop string, and what follows on its
        # heels would name a stream it does not know.
        if stream.stream_id not in self._under_way_ids:
            self._unsent[stream.stream_id] = stream
            self._link.wake()

    def _forget_there(self, stream_id: int) -> None:
        self._forgotten.append(stream_id)
        self._link.wake()

    def on_broken(self, error: ForebayError) -> None:
        """The tokenizer has forgotten every stream."""
        streams, self._streams = list(self._streams.values()), {}
        self._unsent.clear()
        self._forgotten.clear()
        self._under_way.clear()
        self._under_way_ids.clear()
        if error.code is Code.INVALID_ARGUMENT:
            # Sent again, the same tokens would be refused again.
            for stream in streams:
                stream.fail(ForebayError("the tokenizer refused generated tokens"))
            return
        for stream in streams:
            stream.rewind()
        self._replay(self, streams)
