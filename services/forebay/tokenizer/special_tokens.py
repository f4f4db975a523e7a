"""The special tokens that a chat template may name (bos_token, eos_token, ...), as text."""

from pathlib import Path
from typing import Any

from forebay.models.gguf_metadata import GgufMetadata
from forebay.models.json_file import read_json

_GGUF_KEYS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def special_token_texts(source: GgufMetadata | Path) -> dict[str, str]:
    """Text of each special token that the model names, by transformers' name for it.

    Raises:
        StartError: a file is damaged.
    """
    if isinstance(source, GgufMetadata):
        return _from_gguf(source)
    texts: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the latter has the last word
        if (source.parent / name).is_file():
            texts |= _texts(read_json(source.parent / name).values)
    return texts


def _from_gguf(metadata: GgufMetadata) -> dict[str, str]:
    tokens = metadata.get_list("tokenizer.ggml.tokens", str) or []
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id", int) for name, key in _GGUF_KEYS.items()}
    return {name: tokens[token_id] for name, token_id in ids.items() if token_id is not None and token_id < len(tokens)}


def _texts(values: dict[str, Any]) -> dict[str, str]:
    """A special token is written as text or as an object with its text under "content"."""
    texts = {}
    for name in (*_GGUF_KEYS, "sep_token", "cls_token", "mask_token"):
        value = values.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            texts[name] = text
    return texts
