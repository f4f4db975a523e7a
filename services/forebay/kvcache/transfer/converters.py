"""Converters of other nodes' blocks, made when first asked for. Few are kept, since callers choose the layouts."""

import asyncio
from collections.abc import Callable
from typing import Final

from forebay.kernels.converter import BlockConverter, block_converter, reference_converter
from forebay.kv.conversion import ConversionPlan

PATIENCE_WITH_COMPILER_S: Final = 0.2
"""How long a transfer waits for the native converter before it takes the slower one."""
MOST_CONVERTERS: Final = 16
"""Kept, those used last: each layout that another node has is another one."""


class Converters:
    """`make` may take as long as a compiler does, and runs in a thread."""

    def __init__(self, make: Callable[[ConversionPlan], BlockConverter] = block_converter) -> None:
        self._make = make
        self._making: dict[ConversionPlan, asyncio.Task[BlockConverter]] = {}  # the one used last comes last

    def __len__(self) -> int:
        return len(self._making)

    async def of(self, plan: ConversionPlan) -> BlockConverter:
        """The native one if it is there within a moment; else, and where it cannot be made, the slower one."""
        making = self._making.pop(plan, None)
        if making is None:
            making = asyncio.create_task(asyncio.to_thread(self._make, plan))
        self._making[plan] = making
        if len(self._making) > MOST_CONVERTERS:
            del self._making[next(iter(self._making))]
        # Where nobody has yet compiled the native library that takes long, and a request waits for its blocks.
        done, _ = await asyncio.wait((making,), timeout=PATIENCE_WITH_COMPILER_S)
        is_made = done and making.exception() is None
        return making.result() if is_made else reference_converter(plan)
