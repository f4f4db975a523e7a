"""Digest of a model: what makes two workers' KV interchangeable. Remembered in the cache folder.

Knows nothing of formats: it hashes whole files. Two files with the same bytes have the same digest wherever they lie.
"""

import json
from contextlib import suppress
from pathlib import Path

import xxhash

from forebay.host.whole_file import write_whole
from forebay.models.cache_folder import cache_dir

_CHUNK_BYTES = 8 << 20


def model_digest(paths: list[Path]) -> str:
    """xxh3-128 over the names' order and the bytes of the files: 32 hex digits.

    A second call is quick: the digest is kept under the files' paths, sizes and times of change. A cache folder that
    cannot be written costs time and nothing else.
    """
    stamp = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    key = xxhash.xxh3_128_hexdigest(json.dumps(stamp).encode())
    remembered = cache_dir() / "digests" / key
    with suppress(OSError, UnicodeDecodeError):
        digest = remembered.read_text()
        if len(digest) == 32 and set(digest) <= set("0123456789abcdef"):
            return digest
    digest = _hash_files(paths)
    with suppress(OSError):
        write_whole(remembered, digest.encode())
    return digest


def _hash_files(paths: list[Path]) -> str:
    state = xxhash.xxh3_128()
    for path in paths:
        state.update(path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                state.update(chunk)
    return str(state.hexdigest())
