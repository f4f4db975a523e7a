"""Where Forebay keeps what it can fetch or compute again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$FOREBAY_CACHE`, or `$XDG_CACHE_HOME/forebay`, or `~/.cache/forebay`. It need not exist yet."""
    if own := os.environ.get("FOREBAY_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "forebay"
