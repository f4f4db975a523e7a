"""Text and conversations to token ids. Knows no proto; long inputs are computed off the event loop."""

import asyncio
from collections.abc import Sequence

from tokenizers import Tokenizer

from forebay.errors import ForebayError
from forebay.tokenizer.chat_template import ChatTemplate, Message

_INLINE_CHARACTERS = 4_096  # about 4 ms; a thread costs 0.1 ms, and open streams wait meanwhile

EncodeInput = str | Sequence[Message]


class TextEncoder:
    """Encodes by one tokenizer and one chat template."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        """Takes both over; they are used on several threads."""
        self._tokenizer = tokenizer
        self._template = template

    async def encode(self, inputs: Sequence[EncodeInput]) -> list[list[int]]:
        """Token ids of each input. Text gets the special tokens that the tokenizer adds by itself; a conversation is
        rendered with the generation prompt and gets none.

        Raises:
            InvalidFieldError, UnknownRoleError, TemplateFailedError: a conversation cannot be rendered;
                metadata["index"] says which.
        """
        if sum(map(_character_count, inputs)) <= _INLINE_CHARACTERS:
            return self._encode(inputs)
        return await asyncio.to_thread(self._encode, inputs)

    def _encode(self, inputs: Sequence[EncodeInput]) -> list[list[int]]:
        return [self._encode_one(index, each) for index, each in enumerate(inputs)]

    def _encode_one(self, index: int, each: EncodeInput) -> list[int]:
        if isinstance(each, str):
            return self._ids(each, add_special_tokens=True)
        try:
            return self._ids(self._template.render(each), add_special_tokens=False)
        except ForebayError as error:
            error.metadata["index"] = str(index)
            raise

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        # The "fast" call computes no offsets, and lets go of the interpreter while it works.
        (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids


def _character_count(each: EncodeInput) -> int:
    return len(each) if isinstance(each, str) else sum(len(message.role) + len(message.content) for message in each)
