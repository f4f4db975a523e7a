"""Token ids to text, a few at a time: whole characters only, and nothing that may belong to a stop string. Pure.

Knows nothing of streams of requests (`open_streams`) or of how the table of bytes was made (`vocabulary`).
"""

import codecs
import re
from collections.abc import Iterable
from dataclasses import dataclass

from forebay.tokenizer.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class TokenStreamOptions:
    """How one token stream becomes text. stop: each at least one character."""

    stop: tuple[str, ...] = ()
    keep_special_tokens: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """Text that became certain.

    stop_match: the stop string that was met; the text ends before it. stop_token_count: how many of the tokens just
    pushed were needed to meet it, >= 1; set together with stop_match.
    """

    text: str
    stop_match: str | None = None
    stop_token_count: int | None = None


class TokenStream:
    """One token stream. The text of all deltas together is the same however the tokens were cut into pushes.

    Bytes that are no UTF-8 become U+FFFD, as in tokenizer.decode. The first bytes of a character that the end cuts off,
    such as one at max_tokens, are left out: they are no error of the model. Of several stop strings that one token
    completes, the leftmost wins, then the one given first.

    Invariant: `_held` begins no stop string before its first character, and holds no whole one.
    """

    def __init__(self, options: TokenStreamOptions, vocabulary: Vocabulary) -> None:
        """Begins a stream; the options and the vocabulary are not copied."""
        self._stop = options.stop
        self._longest_stop = max(map(len, options.stop), default=0)
        self._starts = (
            re.compile("[" + re.escape("".join({stop[0] for stop in options.stop})) + "]") if options.stop else None
        )
        self._pieces = vocabulary.pieces if options.keep_special_tokens else vocabulary.visible_pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = vocabulary.drops_first_space
        self._held = ""

    def push(self, token_ids: Iterable[int]) -> Delta:
        """Adds tokens. After a delta with a stop match the stream is over.

        Args:
            token_ids: each in 0..len(vocabulary)-1.
        """
        if self._starts is None:
            return Delta(self._decode(b"".join([self._pieces[token_id] for token_id in token_ids])))
        certain: list[str] = []
        for token_count, token_id in enumerate(token_ids, 1):
            self._held += self._decode(self._pieces[token_id])
            if match := self._find_stop():
                start, stop = match
                certain.append(self._held[:start])
                return Delta("".join(certain), stop, token_count)
            certain.append(self._release())
        return Delta("".join(certain))

    def finish(self) -> Delta:
        """No more tokens come: what was held back for a stop string is certain now, and half a character is no text."""
        return Delta(self._held)

    def _decode(self, piece: bytes) -> str:
        text = self._decoder.decode(piece)
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text

    def _find_stop(self) -> tuple[int, str] | None:
        """Where the leftmost stop string begins in the held text, and which it is."""
        found = [(start, place) for place, stop in enumerate(self._stop) if (start := self._held.find(stop)) >= 0]
        if not found:
            return None
        start, place = min(found)
        return start, self._stop[place]

    def _release(self) -> str:
        """Takes from the held text all that cannot begin a stop string."""
        held = self._held
        assert self._starts is not None
        for candidate in self._starts.finditer(held, max(0, len(held) - self._longest_stop + 1)):
            tail = held[candidate.start() :]
            if any(stop.startswith(tail) for stop in self._stop):
                self._held = tail
                return held[: candidate.start()]
        self._held = ""
        return held
