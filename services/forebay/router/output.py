"""What one request has generated: tokens on their way to text, and chunks for the caller. Pure but for protobuf.

Invariant: tokens and log-probabilities reach the caller once, in order, and none after a stop string's last token. What
the caller received from another router is part of the answer, and not handed over again.
"""

from collections.abc import Sequence

from forebay.v1 import common_pb2, router_pb2


class Output:
    """Tokens generated, then made text, then taken as chunks. Text and tokens that wait are coalesced."""

    def __init__(self, received_token_ids: Sequence[int] = ()) -> None:
        self._token_ids = list(received_token_ids)
        self.received_count = len(received_token_ids)
        self._logprobs: list[common_pb2.TokenLogprobs] = []  # of the tokens that were not received before
        self._certain_count = self.received_count  # tokens whose text is known or held back
        self._taken_count = self.received_count
        self._text: list[str] = []
        self.stop_match: str | None = None
        self.is_text_complete = False

    @property
    def token_ids(self) -> Sequence[int]:
        """The answer so far, whether its text is known or not."""
        return self._token_ids

    @property
    def token_count(self) -> int:
        """Tokens that the caller has."""
        return self._taken_count

    def add_tokens(self, token_ids: Sequence[int], logprobs: Sequence[common_pb2.TokenLogprobs]) -> None:
        """A worker generated tokens; `logprobs` is empty or as long."""
        self._token_ids.extend(token_ids)
        self._logprobs.extend(logprobs)

    def add_text(self, text: str, token_count: int, stop_match: str | None, is_last: bool) -> None:
        """The tokenizer's news, for this many further tokens."""
        if text:
            self._text.append(text)
        self._certain_count += token_count
        self.stop_match = stop_match
        self.is_text_complete = is_last or stop_match is not None

    def take_chunk(self) -> router_pb2.Chunk | None:
        """All that waits for the caller; None when nothing does."""
        if self._taken_count == self._certain_count and not self._text:
            return None
        start, self._taken_count = self._taken_count, self._certain_count
        text = "".join(self._text)
        self._text.clear()
        return router_pb2.Chunk(
            text=text,
            token_ids=self._token_ids[start : self._certain_count],
            logprobs=self._logprobs[start - self.received_count : self._certain_count - self.received_count],
        )
