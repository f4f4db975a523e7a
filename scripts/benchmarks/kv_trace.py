"""Requests of a public trace, as the block hashes of their prompts. Knows Mooncake's format, no more."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

from forebay.kv.hashing import HASH_BYTES, chain

HOW_TO_GET_IT = (
    "name Mooncake's conversation trace with --trace FILE: conversation_trace.jsonl, plain or gzipped, from the folder"
    " FAST25-release/traces of the repository kvcache-ai/Mooncake"
)

Trace = Sequence[Sequence[bytes]]
"""Of every request, in order, the hashes of its prompt's blocks."""


def read_trace(path: Path | None) -> Trace:
    """Requests in order. Exits with a word on how to get the trace when there is none."""
    if path is None or not path.is_file():
        raise SystemExit(f"scripts/bench hit_rates: {path or 'no trace'} is not there; {HOW_TO_GET_IT}")
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    hash_of: dict[int, bytes] = {}  # the trace numbers blocks; equal numbers are equal prefixes
    return [
        [hash_of.setdefault(number, chain(bytes(HASH_BYTES), [number])) for number in json.loads(line)["hash_ids"]]
        for line in text.splitlines()
    ]
