"""Where Forebay keeps what it can fetch or compute again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$FOREBAY_CACHE`, or `$XDG_CACHE_HOME/forebay`, or `~/.cache/forebay`. It need not exist yet."""
    if own := os.environ.get("FOREBAY_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "forebay"


def write_atomically(path: Path, content: bytes) -> None:
    """Makes the file with that content, or leaves what was there: a reader never sees half of it.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
