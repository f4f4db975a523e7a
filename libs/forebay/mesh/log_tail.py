"""The last words of a service that stopped."""

import os
from pathlib import Path
from typing import Final

_TAIL_BYTES: Final = 16_384
_MARK: Final = "cannot start: "


def last_words(log_path: Path) -> str:
    """The service's own reason why it cannot start, else its last line, else that there is none."""
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return "it has written no log"
    words = [line.strip() for line in lines if line.strip()]
    for line in reversed(words):
        if _MARK in line:
            return line.partition(_MARK)[2]
    return words[-1] if words else "it has written nothing to its log"
