"""What a KV-cache service holds for sequences when there should be none."""

import asyncio
import time
from typing import Final

from forebay.client.kv_operator import KvOperator

RELEASED_S: Final = 1.0
"""Within this time after the last request nothing may be held."""
_ASKED_EVERY_S: Final = 0.01


async def held_blocks(address: str, within_s: float) -> int:
    """Leased and referenced in any tier; zero as soon as it is zero, else what it is when the time is over."""
    async with KvOperator(address) as operator:
        ends_s = time.monotonic() + within_s
        while True:
            tiers = (await operator.stats()).tiers
            for tier in tiers:
                assert tier.free_blocks + tier.leased_blocks + tier.sealed_blocks == tier.capacity_blocks
            held = sum(tier.leased_blocks + tier.referenced_blocks for tier in tiers)
            if held == 0 or time.monotonic() >= ends_s:
                return held
            await asyncio.sleep(_ASKED_EVERY_S)
