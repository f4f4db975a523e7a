"""What a service can be. Knows no transport; everyone may import it."""

from enum import Enum


class Role(Enum):
    """What a service is; the value begins its key in the fleet's bucket."""

    ROUTER = "router"
    TOKENIZER = "tokenizer"
    PREFILL = "prefill"
    DECODE = "decode"
    KVCACHE = "kvcache"
    GATEWAY = "gateway"
