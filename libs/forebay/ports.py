"""Which service listens where unless told otherwise: the ports of a mesh on one machine, one worker of each role."""

from typing import Final

HOST: Final = "127.0.0.1"
BASE: Final = 7400
# Offsets from the base. Four routers, four tokenizers, ten prefill and ten decode workers have room.
ROUTER: Final = 0
TOKENIZER: Final = 1
KVCACHE: Final = 2
FURTHER_ROUTERS: Final = 3
FURTHER_TOKENIZERS: Final = 6
PREFILL: Final = 10
DECODE: Final = 20
REPLACEMENTS: Final = 30
"""The first of ten for workers that replace others, which still listen at their own."""
NATS: Final = 40


def default_address(offset: int) -> str:
    """HOST:PORT of the service with this offset."""
    return f"{HOST}:{BASE + offset}"
