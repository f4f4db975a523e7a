"""The bytes that each token id stands for: all that turning ids into text needs. Pure but for the table's making.

A token's text cannot be had alone, since a character may be spread over tokens; its bytes can.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from forebay.models.refusals import unsupported

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SENTENCEPIECE_DECODERS = {"Replace", "ByteFallback", "Fuse", "Strip"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Bytes of each token id, 0..len-1; ids without a token have none.

    pieces: every token's bytes. visible_pieces: the same, with nothing for special tokens. drops_first_space: the text
    of a sequence loses one space at its start (SentencePiece).
    """

    pieces: tuple[bytes, ...]
    visible_pieces: tuple[bytes, ...]
    drops_first_space: bool = False

    def __len__(self) -> int:
        return len(self.pieces)


def read_vocabulary(path: Path, tokenizer: Tokenizer, size: int) -> Vocabulary:
    """The table of a tokenizer.

    Args:
        path: the model, for the refusal.
        tokenizer: any whose decoder is byte-level or SentencePiece with byte fallback.
        size: number of token ids of the model, which may be more than the tokenizer has.

    Raises:
        StartError: the tokenizer decodes in another way.
    """
    decoder: dict[str, Any] = json.loads(tokenizer.to_str())["decoder"] or {"type": "none"}
    steps = [step["type"] for step in decoder.get("decoders", [decoder])]
    if steps == ["ByteLevel"]:
        spell = _byte_level_bytes
    elif "ByteFallback" in steps and set(steps) <= _SENTENCEPIECE_DECODERS:
        spell = _sentencepiece_bytes
    else:
        raise unsupported(
            path, f"a tokenizer that decodes by {' + '.join(steps)}", ["ByteLevel", "SentencePiece with ByteFallback"]
        )
    pieces, visible = [b""] * size, [b""] * size
    special_ids = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    for token, token_id in tokenizer.get_vocab(with_added_tokens=True).items():
        if token_id < size:
            pieces[token_id] = spell(token)
            visible[token_id] = b"" if token_id in special_ids else pieces[token_id]
    return Vocabulary(tuple(pieces), tuple(visible), drops_first_space="Strip" in steps)


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the other 68 for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    # A token with any character outside the alphabet was never spelled: it is its own text.
    if all(character in _ALPHABET for character in token):
        return bytes(_ALPHABET[character] for character in token)
    return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace("\u2581", " ").encode()
