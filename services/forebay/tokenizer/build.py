"""Builds the tokenizer of a model: from GGUF metadata or from tokenizer.json. Knows the `tokenizers` library.

Token ids are those that `transformers` gives for the model's own tokenizer.json.
"""

from itertools import chain
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing

from forebay.errors import StartError
from forebay.models.gguf_metadata import GgufMetadata
from forebay.models.refusals import damaged, unsupported
from forebay.tokenizer.splitting import SPLITTINGS, Splitting

_CONTROL, _USER_DEFINED = 3, 4  # llama.cpp's token types that are matched whole in text


def build_tokenizer(source: GgufMetadata | Path) -> Tokenizer:
    """The tokenizer, without truncation or padding.

    Raises:
        StartError: the source is missing or damaged, or the tokenizer is of a kind that is not supported.
    """
    if isinstance(source, GgufMetadata):
        return _from_gguf(source)
    if not source.is_file():
        raise StartError(f"{source}: there is no such file; save the model's fast tokenizer (tokenizer.json) beside it")
    try:
        tokenizer = Tokenizer.from_file(str(source))
    except Exception as error:  # the library raises nothing more specific
        raise damaged(source, f"not a tokenizer that can be read ({error})") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _from_gguf(metadata: GgufMetadata) -> Tokenizer:
    kind = metadata.require("tokenizer.ggml.model", str)
    if kind != "gpt2":
        raise unsupported(
            metadata.path, f"tokenizer model {kind}", ["gpt2 (byte-level BPE)", "a folder with tokenizer.json"]
        )
    pre = metadata.get("tokenizer.ggml.pre", str) or "default"
    splitting = SPLITTINGS.get(pre)
    if splitting is None:
        raise unsupported(metadata.path, f"pre-tokenizer {pre}", SPLITTINGS)
    tokens = metadata.get_list("tokenizer.ggml.tokens", str)
    merges = metadata.get_list("tokenizer.ggml.merges", str)
    if not tokens or merges is None:
        raise damaged(metadata.path, "the vocabulary or its merges are missing")
    tokenizer = _bpe(metadata.path, tokens, merges, splitting)
    _add_whole_tokens(tokenizer, metadata, tokens)
    _add_template(tokenizer, metadata, tokens, splitting)
    return tokenizer


def _bpe(path: Path, tokens: list[str], merges: list[str], splitting: Splitting) -> Tokenizer:
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise damaged(path, "two tokens of the vocabulary are the same")
    try:
        pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
        model = BPE(vocabulary, pairs, ignore_merges=splitting.ignores_merges)
    except Exception as error:  # the library raises nothing more specific
        raise damaged(path, f"the vocabulary and its merges do not fit together ({error})") from None
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = splitting.normalizer()
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_whole_tokens(tokenizer: Tokenizer, metadata: GgufMetadata, tokens: list[str]) -> None:
    kinds = metadata.get_list("tokenizer.ggml.token_type", int) or []
    if kinds and len(kinds) != len(tokens):
        raise damaged(metadata.path, f"{len(kinds)} token types for {len(tokens)} tokens")
    whole = {
        kind: [token for token, its in zip(tokens, kinds, strict=False) if its == kind]
        for kind in (_CONTROL, _USER_DEFINED)
    }
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in whole[_CONTROL]])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole[_USER_DEFINED]])


def _add_template(tokenizer: Tokenizer, metadata: GgufMetadata, tokens: list[str], splitting: Splitting) -> None:
    """What plain text is wrapped in: nothing, or the tokens that begin and end a sequence."""
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", bool)
    before = _token_id(metadata, "bos", len(tokens)) if (splitting.adds_bos if adds_bos is None else adds_bos) else None
    after = _token_id(metadata, "eos", len(tokens)) if metadata.get("tokenizer.ggml.add_eos_token", bool) else None
    ids = {tokens[token_id]: token_id for token_id in (before, after) if token_id is not None}
    if not ids:
        return
    template = chain(() if before is None else (tokens[before],), ("$A",), () if after is None else (tokens[after],))
    tokenizer.post_processor = TemplateProcessing(single=list(template), special_tokens=list(ids.items()))


def _token_id(metadata: GgufMetadata, name: str, token_count: int) -> int | None:
    token_id = metadata.get(f"tokenizer.ggml.{name}_token_id", int)
    if token_id is not None and not 0 <= token_id < token_count:
        raise damaged(metadata.path, f"{name} token id {token_id} is not in the vocabulary")
    return token_id
