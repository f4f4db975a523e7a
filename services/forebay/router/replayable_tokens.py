"""The tokens of one request on their way through a tokenizer's stream. Pure but for protobuf.

Invariant: text and tokens reach the sink once and in order, also when the stream is replayed from its first token on
another tokenizer, or goes on with what another router delivered: what was delivered before is skipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from forebay.errors import ForebayError
from forebay.v1 import tokenizer_pb2


class TextSink(Protocol):
    """Who waits for text. Called on the loop; must not block."""

    def on_text(self, text: str, token_count: int, stop_match: str | None, is_last: bool) -> None:
        """`text` became certain, from this many further tokens; `stop_match` ends the stream as `is_last` does."""
        ...

    def on_text_failed(self, error: ForebayError) -> None:
        """There will be no more text."""
        ...


@dataclass(frozen=True, slots=True)
class Sent:
    """An item under way: tokens start..end-1 of its stream."""

    stream: "ReplayableTokens"
    start: int
    end: int
    is_last: bool


class ReplayableTokens:
    """Tokens pushed, tokens sent, tokens answered, in that order of progress."""

    def __init__(self, stream_id: int, options: tokenizer_pb2.DetokenizeOptions, sink: TextSink) -> None:
        self.stream_id = stream_id
        self._options = options
        self._sink = sink
        self._token_ids: list[int] = []
        self._is_complete = False  # no more tokens come
        self._sent_count = 0
        self._is_end_sent = False
        self._is_open = False  # the tokenizer knows this stream
        self._answered_count = 0
        self._delivered_characters = 0
        self._skip_characters = 0
        self.is_done = False

    @property
    def is_open(self) -> bool:
        """Whether the tokenizer holds state for it."""
        return self._is_open

    @property
    def has_unsent(self) -> bool:
        """Whether there is something the tokenizer does not know yet."""
        return self._sent_count < len(self._token_ids) or (self._is_complete and not self._is_end_sent)

    @property
    def missing_characters(self) -> int:
        """How much text was delivered before that the tokenizer has not said again."""
        return self._skip_characters

    def recall(self, token_ids: Sequence[int], text_characters: int) -> None:
        """Begins with tokens that were delivered elsewhere, and with so much of their text."""
        assert not self._token_ids
        self._token_ids.extend(token_ids)
        self._answered_count = len(token_ids)
        self._delivered_characters = self._skip_characters = text_characters

    def push(self, token_ids: Sequence[int], is_last: bool) -> None:
        """New tokens."""
        self._token_ids.extend(token_ids)
        self._is_complete = is_last

    def take(self) -> tuple[tokenizer_pb2.DetokenizeItem, Sent]:
        """The item that says what the tokenizer does not know yet."""
        start, self._sent_count = self._sent_count, len(self._token_ids)
        item = tokenizer_pb2.DetokenizeItem(
            stream_id=self.stream_id,
            open=None if self._is_open else self._options,
            token_ids=self._token_ids[start:],
            is_last=self._is_complete,
        )
        self._is_open = True
        self._is_end_sent = self._is_complete
        return item, Sent(self, start, self._sent_count, self._is_complete)

    def rewind(self) -> None:
        """The tokenizer has forgotten this stream: begin again."""
        self._sent_count = 0
        self._is_open = self._is_end_sent = False
        self._skip_characters = self._delivered_characters

    def on_answer(self, sent: Sent, answer: tokenizer_pb2.DetokenizedText) -> None:
        """The tokenizer's text for an item."""
        if self.is_done:
            return
        has_stop = answer.HasField("stop_match")
        end = sent.start + answer.stop_token_count if has_stop else sent.end
        token_count = max(0, end - self._answered_count)
        self._answered_count += token_count
        text = answer.text[self._skip_characters :]
        self._skip_characters -= len(answer.text) - len(text)
        self._delivered_characters += len(text)
        self.is_done = sent.is_last or has_stop
        self._sink.on_text(text, token_count, answer.stop_match if has_stop else None, sent.is_last)

    def fail(self, error: ForebayError) -> None:
        """There is no tokenizer for it."""
        if not self.is_done:
            self.is_done = True
            self._sink.on_text_failed(error)
