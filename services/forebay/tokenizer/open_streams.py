"""The token streams that one Detokenize call carries, told apart by the caller's ids. Pure.

Knows the rules of opening and ending; the text itself is `detokenizer`'s.
"""

from collections import OrderedDict
from collections.abc import Sequence

from forebay.errors import InvalidFieldError, TokenOutOfRangeError
from forebay.tokenizer.detokenizer import Delta, TokenStream, TokenStreamOptions
from forebay.tokenizer.vocabulary import Vocabulary
from forebay.wire.sampling import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS

_MAX_STOPPED = 8_192


class OpenStreams:
    """All streams of one call."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Begins with no stream."""
        self._vocabulary = vocabulary
        self._streams: dict[int, TokenStream] = {}
        # Streams ended by a stop string. The caller may have sent them more tokens before it learned of that; those are
        # answered with nothing. Bounded: the oldest are forgotten.
        self._stopped: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, stream_id: int, options: TokenStreamOptions) -> None:
        """Begins a stream.

        Raises:
            InvalidFieldError: the stream is open already, or a stop string is empty or too long, or there are too many.
        """
        if stream_id in self._streams:
            raise InvalidFieldError(f"stream {stream_id} is open already", field="items.open")
        if len(options.stop) > MAX_STOP_STRINGS:
            raise InvalidFieldError(f"at most {MAX_STOP_STRINGS} stop strings can be given", field="items.open.stop")
        if not all(1 <= len(stop) <= MAX_STOP_CHARACTERS for stop in options.stop):
            raise InvalidFieldError(f"a stop string has 1..{MAX_STOP_CHARACTERS} characters", field="items.open.stop")
        self._stopped.pop(stream_id, None)
        self._streams[stream_id] = TokenStream(options, self._vocabulary)

    def push(self, stream_id: int, token_ids: Sequence[int], *, is_last: bool) -> Delta:
        """Adds tokens to a stream; ends it when a stop string is met or no more tokens come.

        Raises:
            InvalidFieldError: the stream was never opened.
            TokenOutOfRangeError: a token id is not in the vocabulary.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return self._late(stream_id)
        if token_ids and max(token_ids) >= len(self._vocabulary):
            raise TokenOutOfRangeError(
                f"token ids are below {len(self._vocabulary)}, but {max(token_ids)} came", field="items.token_ids"
            )
        delta = stream.push(token_ids)
        if delta.stop_match is not None:
            del self._streams[stream_id]
            self._remember_stopped(stream_id)
        elif is_last:
            del self._streams[stream_id]
            delta = Delta(delta.text + stream.finish().text)
        return delta

    def _late(self, stream_id: int) -> Delta:
        if stream_id not in self._stopped:
            raise InvalidFieldError(f"stream {stream_id} is not open", field="items.stream_id")
        return Delta("")

    def _remember_stopped(self, stream_id: int) -> None:
        self._stopped[stream_id] = None
        if len(self._stopped) > _MAX_STOPPED:
            self._stopped.popitem(last=False)
