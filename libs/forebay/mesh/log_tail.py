"""The last words of a service that stopped."""

import json
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
            return _reason(line)
    return words[-1] if words else "it has written nothing to its log"


def _reason(line: str) -> str:
    """What follows the mark; where that is a field of the line, quoted as JSON, to the end of the field."""
    before, _, after = line.partition(_MARK)
    if not before.endswith('"'):
        return after
    try:
        field, _ = json.JSONDecoder().raw_decode(line, len(before) - 1)
    except ValueError:
        return after
    return str(field).removeprefix(_MARK)
