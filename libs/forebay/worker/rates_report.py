"""What a worker tells the fleet of its speed, and when: whenever it has changed by a tenth.

Knows neither the fleet nor how steps are measured.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from forebay.chips.fleet_file import ClassFigures
from forebay.engine.reached_rates import ReachedRates
from forebay.engine.step_cost import ModelCost
from forebay.kv.layout import KvLayout
from forebay.routing.cost import ChipRates, ModelSize
from forebay.tasks import end_task

INTERVAL_S: Final = 1.0
CHANGE: Final = 0.1
"""Less is noise, and each telling has every router see the fleet anew."""


def model_size(cost: ModelCost, layout: KvLayout) -> ModelSize:
    """The model as the planner's formulas take it."""
    # 2 operations a parameter; 4 for each number of a query, layer, and token that a row attends to.
    return ModelSize(
        parameters=cost.row_operations.model // 2,
        weight_bytes=cost.layer_bytes + cost.head_bytes,
        kv_token_bytes=cost.kv_token_bytes,
        layers=layout.layers,
        width=max(1, cost.attention_operations.model // (4 * layout.layers)),
    )


def chip_rates(figures: ClassFigures, reached: ReachedRates) -> ChipRates | None:
    """What the worker reaches, or is said to; None: nobody knows yet."""
    flops_per_s, bytes_per_s = reached.flops_per_s or figures.flops_per_s, reached.bytes_per_s or figures.bytes_per_s
    if flops_per_s is None or bytes_per_s is None:
        return None
    return ChipRates(
        step_overhead_s=figures.step_overhead_s or 0.0,
        flops_per_s=flops_per_s,
        bytes_per_s=bytes_per_s,
        watts=figures.watts or 0.0,
        usd_per_hour=figures.usd_per_hour or 0.0,
    )


class RatesReport:
    """Looks each second; `tell` hears what is new, on the loop."""

    def __init__(
        self,
        read: Callable[[], ChipRates | None],
        tell: Callable[[ChipRates], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._read = read
        self._tell = tell
        self._interval_s = interval_s
        self._told: ChipRates | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="rates-report")

    async def close(self) -> None:
        """Ends it. Idempotent."""
        if self._task is not None:
            await end_task(self._task)
            self._task = None

    async def _run(self) -> None:
        while True:
            rates = self._read()
            if rates is not None and (self._told is None or _has_changed(self._told, rates)):
                self._told = rates
                self._tell(rates)
            await asyncio.sleep(self._interval_s)


def _has_changed(told: ChipRates, now: ChipRates) -> bool:
    pairs = ((told.flops_per_s, now.flops_per_s), (told.bytes_per_s, now.bytes_per_s))
    return any(abs(new - old) > CHANGE * old for old, new in pairs)
