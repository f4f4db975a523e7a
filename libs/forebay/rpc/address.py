"""How an address is written: HOST:PORT. Knows nothing of whether anybody listens there."""

import re
from typing import Final

from forebay import ports

_ADDRESS: Final = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\[\]:/\s]+):(\d{1,5})", re.ASCII)


def checked_address(text: str) -> str:
    """The address itself. Raises ValueError if it is no HOST:PORT; for settings, which make that a usage error."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[1]) > 65_535:
        example = ports.default_address(ports.ROUTER)
        raise ValueError(f"{text!r} is not HOST:PORT with a port in 0..65535, such as {example} or [::1]:{ports.BASE}")
    return text
